"""What may happen to a run in the middle of a measurement: the point fails by name, the next one is measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pandas as pd
import psutil
import pytest

from experiments.measurement.cluster_bench import variant
from testbed.config.load import load_config
from testbed.config.schema import LatencyConfig
from testbed.grid import Point, config_signature, points
from testbed.network.sandbox import tool_path
from testbed.results.measurement_hash import measurement_hash
from testbed.results.run_folder import RunFolder
from tests.emulation.machine import ROOT, SMALL, actor, command, machine_state, pytestmark
from tests.results.test_run_folder import row

__all__ = ["pytestmark"]

ROOT_USER = os.geteuid() == 0

FAST, SLOW = 100.0, 0.05  # Mbps; a pass of sequence at SLOW takes 7 s
BEGUN_S = 3.0  # after the point before it, a slow point is under way: its method is prepared and verified
TIMEOUT_S = 6.0
# Of a failed point: an operation's timeout and what its bytes need, the same again for ranks that do not answer, and
# a new cluster, on a machine that is busy with other things.
FAULT_S = 2 * (TIMEOUT_S + 7) + 60
WORDS = ["network=mininet", "compute_mode=replay", f"bandwidths=[{SLOW},{FAST}]", f"timeout_s={TIMEOUT_S}", "repeats=1"]
WORDS += ["point_budget_s=1"]  # a pass at SLOW is longer, so no warm-up pass comes before the one that a fault hits


@cache
def in_turns(*words: str) -> tuple[str, list[Point]]:
    """A seed for which every slow point is measured between two fast ones, and all points in that order."""
    config = load_config(["+experiment=smoke", *SMALL, *WORDS, *words])
    assert isinstance(config, LatencyConfig)
    for seed in range(5000):
        order = points(replace(config, seed=seed))
        slow = [is_slow(point) for point in order]
        if not (slow[0] or slow[-1] or any(map(all, pairwise(slow)))):
            return f"seed={seed}", order
    raise AssertionError("no seed gives this order")


def is_slow(point: Point) -> bool:
    return point.bandwidth_mbps == SLOW and point.devices > 1


def signature_of(*words: str) -> str:
    """The name of the folder that this configuration's results go to."""
    return config_signature(load_config(["+experiment=smoke", *SMALL, *words]))


class Run:
    """A run that can be disturbed while a slow point is under way."""

    def __init__(self, results: Path, *words: str):
        seed, self.order = in_turns(*words)
        arguments = command(results, *WORDS, *words, seed)
        self.results, self.lines = results, []
        self.root = psutil.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def slow_points(self) -> Iterator[tuple[int, Point]]:
        """(its number, from 1 on; the point) for each slow point as soon as it is under way."""
        for done, point in enumerate(self.order):
            if is_slow(point):
                self.read_until(f"[{done}/")
                time.sleep(BEGUN_S)
                yield done + 1, point

    def read_until(self, text: str) -> None:
        assert self.root.stdout is not None
        for line in self.root.stdout:
            self.lines.append(line)
            if text in line:
                return
        pytest.fail("".join(self.lines))

    def end(self) -> int:
        assert self.root.stdout is not None
        self.lines += self.root.stdout.readlines()
        return self.root.wait(60)

    def rows(self) -> pd.DataFrame:
        return pd.read_csv(self.results / "latest" / "results.csv")

    def process(self, name: str, words: str = "") -> psutil.Process:
        """The process of this name with these words in its command line."""
        for process in self.root.children(recursive=True):
            if process.name() == name and words in " ".join(process.cmdline()):
                return process
        raise AssertionError(f"no process {name} {words}")

    def link(self, rank: int, state: str) -> None:
        """Set the switch's end of a data link up or down."""
        enter = ["nsenter", "-t", str(self.process("gcs_server").pid), "-n"]
        enter += [] if ROOT_USER else ["-U", "--preserve-credentials"]
        subprocess.run([*enter, "ip", "link", "set", f"d0-h{rank}", state], check=True, env={"PATH": tool_path()})


def kill_actor(run: Run) -> None:
    actor(run.root, 1).kill()


def kill_node(run: Run) -> None:
    run.process("raylet", "address=10.1.0.2 ").kill()


def kill_head(run: Run) -> None:
    run.process("gcs_server").kill()


def stop_rank(run: Run) -> None:
    actor(run.root, 1).send_signal(signal.SIGSTOP)


def cut_link(run: Run) -> None:
    run.link(1, "down")


def flap_link(run: Run) -> None:
    run.link(1, "down")
    time.sleep(1.5)
    run.link(1, "up")


# What happens in the middle of which method's slow point, and what is said of it.
FAULTS: dict[str, tuple[Callable[[Run], None], str]] = {
    "galaxy": (kill_actor, "the actor of rank 1 died"),
    "ring": (kill_node, "the Ray node of rank 1 died"),
    "megatron_sp": (kill_head, "the Ray head died"),
    "tensor": (stop_rank, "rank 0 waited 6 s in all_reduce for ranks [1]; rank 1 does not answer at all"),
    "block": (cut_link, "rank 0 waited 6 s in all_gather for ranks [1]"),
    "sequence": (flap_link, ""),  # survived
}


def test_a_fault_costs_its_point_and_no_other(tmp_path: Path) -> None:
    before = machine_state()
    run = Run(tmp_path, f"methods=[single,{','.join(FAULTS)}]")
    for number, point in run.slow_points():
        fault, _ = FAULTS[point.method]
        begin = time.monotonic()
        fault(run)
        run.read_until(f"[{number}/")
        assert time.monotonic() - begin < FAULT_S, point.label
    assert run.end() == 1, "".join(run.lines)
    rows = run.rows()
    assert len(rows) == len(run.order)
    fast = rows[(rows.bandwidth_mbps == FAST) | (rows.method == "single")]
    assert (fast.status == "ok").all() and fast.verified.all() and (fast.payload_bytes == fast.formula_bytes).all()
    slow = rows.drop(fast.index).set_index("method")
    for method, (_, error) in FAULTS.items():
        row = slow.loc[method]
        if error:
            (point,) = {point for point in run.order if is_slow(point) and point.method == method}
            assert row.status == "failed" and row.error == f"measure {variant(point)}: {error}"
        else:
            assert row.status == "ok" and row.verified and "off the cost model" in row.fidelity_note
    after = machine_state()
    assert {kind: after[kind] - before[kind] for kind in after} == {kind: set() for kind in after}


def test_a_fault_among_links_alone_costs_its_point(tmp_path: Path) -> None:
    words = [
        "+experiment=fidelity",
        "network=mininet",
        "devices=2",
        "rates=[0.1,0.12]",
        "sizes_bytes=40000",
        "repeats=1",
    ]
    words += ["patterns=one_way", "shapers=tbf", f"timeout_s={TIMEOUT_S}", f"results_dir={tmp_path}"]
    with psutil.Popen(
        [sys.executable, "-m", "testbed.run", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        assert run.stdout is not None
        lines = []
        for line in run.stdout:
            lines.append(line)
            if "[1/2]" in line:  # the next message takes 3 s
                time.sleep(1.5)
                actor(run, 1).kill()
    print(*lines, sep="")  # shown if the test fails
    assert run.returncode == 1
    rows = pd.read_csv(tmp_path / "latest" / "results.csv")
    assert list(rows.status) == ["ok", "failed"]
    assert rows.error[1] == "one_way: the actor of rank 1 died"
    assert sum("cluster of 2 devices on mininet, up" in line for line in lines) == 2  # it was built anew


def test_a_peer_that_never_joins_is_named(tmp_path: Path) -> None:
    drill = subprocess.run(
        [sys.executable, "-m", "tests.emulation.never_joins"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert drill.returncode == 0, drill.stdout[-2000:] + drill.stderr[-2000:]
    assert drill.stdout.splitlines() == ["listen: rank 1 did not answer within 3 s", "joined"]


@pytest.mark.skipif(not ROOT_USER, reason="only root can mount a small disk where this process sees it")
def test_a_full_disk_ends_the_run_and_keeps_what_was_finished(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(tmp_path)], check=True)
    try:
        run = Run(tmp_path, "methods=[single,sequence]")
        number, _ = next(run.slow_points())
        (tmp_path / "ballast").write_bytes(bytes(60_000))
        with pytest.raises(OSError), (tmp_path / "ballast").open("ab") as ballast:
            while True:
                ballast.write(bytes(512))
                ballast.flush()
        assert run.end() == 1
        assert "Traceback" not in "".join(run.lines)
        assert "No space left on device; finished points are kept" in run.lines[-1]
        (tmp_path / "ballast").unlink()
        rows = run.rows()
        assert len(rows) == number - 1 and (rows.status == "ok").all()
        assert not list(tmp_path.glob("smoke/*/.*.part"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_truncated_results_are_named_and_left_alone(tmp_path: Path) -> None:
    words = command(tmp_path, "network=mininet")
    folder = RunFolder(tmp_path, "smoke", signature_of("network=mininet"))
    folder.append([row()])
    config = load_config(["+experiment=smoke", *SMALL, "network=mininet"])
    folder.write_manifest([{"measurement_hash": measurement_hash(asdict(config))}])
    half = folder.parquet.read_bytes()[:-100]
    folder.parquet.write_bytes(half)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *warnings, error = done.stderr.splitlines()
    assert error.startswith(f"error: {folder.parquet} is damaged")
    assert all(line.startswith("WARNING: ") for line in warnings)
    assert folder.parquet.read_bytes() == half


def test_two_runs_at_once_and_other_peoples_network(tmp_path: Path) -> None:
    """Two runs side by side, on a machine with an interface, a bridge and files named as ours would be."""
    others = ["d0-h0", "h0-data", "c0"] if ROOT_USER else []  # only root can make some
    for name in others:
        subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    words = ["network=mininet", "methods=[single,sequence]", "bandwidths=100", "compute_mode=replay"]
    litter = tmp_path / "smoke" / signature_of(*words, "seed=1")
    litter.mkdir(parents=True)
    (litter / ".results.parquet.part").write_bytes(b"half a file of an earlier crash")
    (tmp_path / "latest").symlink_to("smoke/gone")
    try:
        both = [
            subprocess.Popen(command(tmp_path, *words, f"seed={seed}"), cwd=ROOT, stdout=subprocess.DEVNULL)
            for seed in (1, 2)
        ]
        assert [process.wait(200) for process in both] == [0, 0]
    finally:
        for name in others:
            subprocess.run(["ip", "link", "del", name], check=True)  # fails if a run has removed it
    for signature in (path.name for path in (tmp_path / "smoke").iterdir()):
        frame = pd.read_csv(tmp_path / "smoke" / signature / "results.csv")
        assert set(frame.status) == {"ok"} and len(set(frame.method)) == 2
