"""What may happen to a run in the middle of a measurement: the point fails by name, the next one is measured."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import psutil
import pytest

from testbed.config import load_config
from testbed.grid import config_signature, points
from testbed.provenance import code_hash
from testbed.records import RunFolder
from testbed.schema import LatencyConfig
from tests.emulation.machine import ROOT, SMALL, actor, command, machine_state, pytestmark
from tests.test_records import row

__all__ = ["pytestmark"]

SLOW, FIRST, LAST = 0.1, 100.0, 50.0  # Mbps; a pass at SLOW takes 4 s
TIMEOUT_S = 4.0
# Of a failed point: an operation's timeout and what its bytes need, the same again for ranks that do not answer, and
# a new cluster, on a machine that is busy with other things.
FAULT_S = 2 * (TIMEOUT_S + 7) + 60
WORDS = ["network=mininet", "compute_mode=replay", "methods=[sequence]", f"bandwidths=[{SLOW},{FIRST},{LAST}]"]
WORDS += [f"timeout_s={TIMEOUT_S}", "repeats=1"]


@cache
def in_order() -> str:
    """The seed for which the slow point is measured between the two others."""
    for seed in range(100):
        config = load_config(["+experiment=smoke", *SMALL, *WORDS, f"seed={seed}"])
        assert isinstance(config, LatencyConfig)
        if [point.bandwidth_mbps for point in points(config)] == [FIRST, SLOW, LAST]:
            return f"seed={seed}"
    raise AssertionError("no seed gives this order")


def signature_of(*words: str) -> str:
    """The name of the folder that this configuration's results go to."""
    return config_signature(load_config(["+experiment=smoke", *SMALL, *words]))


class Run:
    """A run whose slow point is under way."""

    def __init__(self, results: Path, *words: str):
        arguments = command(results, *WORDS, in_order(), *words)
        self.results, self.lines = results, []
        self.root = psutil.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.read_until("[1/")
        time.sleep(2.0)  # the slow point has begun

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
        return pd.read_csv(self.results / "latest" / "results.csv").set_index("bandwidth_mbps")

    def process(self, name: str, words: str = "") -> psutil.Process:
        """The process of this name with these words in its command line."""
        for process in self.root.children(recursive=True):
            if process.name() == name and words in " ".join(process.cmdline()):
                return process
        raise AssertionError(f"no process {name} {words}")

    def link(self, rank: int, state: str) -> None:
        """Set the switch's end of a data link up or down."""
        enter = ["nsenter", "-t", str(self.process("gcs_server").pid), "-n"]
        subprocess.run([*enter, "ip", "link", "set", f"d0-h{rank}", state], check=True)


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


MEASURE = "measure sequence {'gather': 'x', 'codec': 'fp32'} equal shares 50 tokens:"
FAULTS: dict[Callable[[Run], None], str] = {
    kill_actor: f"{MEASURE} the actor of rank 1 died",
    kill_node: f"{MEASURE} the Ray node of rank 1 died",
    kill_head: f"{MEASURE} the Ray head died",
    stop_rank: f"{MEASURE} rank 0 waited 4 s in all_gather for ranks [1]; rank 1 does not answer at all",
    cut_link: f"{MEASURE} rank 0 waited 4 s in all_gather for ranks [1]",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_costs_its_point_and_no_other(tmp_path: Path, fault: Callable[[Run], None]) -> None:
    before = machine_state()
    run = Run(tmp_path)
    fault(run)
    begin = time.monotonic()
    run.read_until("[2/3]")
    assert time.monotonic() - begin < FAULT_S
    assert run.end() == 1, "".join(run.lines)
    rows = run.rows()
    assert rows.status.to_dict() == {FIRST: "ok", SLOW: "failed", LAST: "ok"}
    assert rows.error[SLOW] == FAULTS[fault]
    assert rows.verified[LAST] and rows.payload_bytes[LAST] == rows.formula_bytes[LAST]
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
    assert run.returncode == 1, "".join(lines)
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


def test_a_full_disk_ends_the_run_and_keeps_what_was_finished(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(tmp_path)], check=True)
    try:
        run = Run(tmp_path)
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
        assert list(rows.index) == [FIRST] and rows.status[FIRST] == "ok"
        assert not list(tmp_path.glob("smoke/*/.*.part"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_truncated_results_are_named_and_left_alone(tmp_path: Path) -> None:
    words = command(tmp_path, "network=mininet")
    folder = RunFolder(tmp_path, "smoke", signature_of("network=mininet"))
    folder.append([row()])
    folder.write_manifest([{"code_hash": code_hash()}])
    half = folder.parquet.read_bytes()[:-100]
    folder.parquet.write_bytes(half)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {folder.parquet} is damaged") and done.stderr.count("\n") == 1
    assert folder.parquet.read_bytes() == half


def test_two_runs_at_once_and_other_peoples_network(tmp_path: Path) -> None:
    """Two runs side by side, on a machine with an interface, a bridge and files named as ours would be."""
    others = ["d0-h0", "h0-data", "c0"]
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


def test_a_flapping_link_is_survived_and_shows(tmp_path: Path) -> None:
    run = Run(tmp_path, "timeout_s=20")
    run.link(1, "down")
    time.sleep(3.0)
    run.link(1, "up")
    assert run.end() == 0, "".join(run.lines)
    rows = run.rows()
    assert set(rows.status) == {"ok"} and rows.verified.all()
    assert rows.fidelity[SLOW] == "degraded" and "off the cost model" in rows.fidelity_note[SLOW]
