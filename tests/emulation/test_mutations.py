"""The instrument does not flatter: whatever is wrong with it shows in the rows, which name the cause."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.limits import usable_cores
from tests.emulation.machine import ROOT, pytestmark

__all__ = ["pytestmark"]

Said = dict[str, list[dict[str, Any]]]  # by the drill, of each mutation, in order
# A third of a core in every 10 ms, at real-time priority where the system grants it.
THIEF = """
import contextlib, os, time
with contextlib.suppress(OSError):
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
while True:
    begin = time.monotonic()
    while time.monotonic() < begin + 3.33e-3:
        pass
    time.sleep(max(0.0, begin + 10e-3 - time.monotonic()))
"""
CAUSES = {
    "slow port": "link rate of d0-h1 off by -",
    "free burst": "link d0-h1 is no longer shaped as it was",
    "double bucket": "link h0-d0 let ",
    "stolen core": "other programs kept ",
    "disorder": "packets came out of order",
    "foreign packets": "foreign bytes",
}
NAMES = ["nothing", *CAUSES, "nothing"]


@contextlib.contextmanager
def thieves() -> Iterator[None]:
    """A third of a core taken for every two cores."""
    found = [subprocess.Popen([sys.executable, "-c", THIEF]) for _ in range(max(1, usable_cores() // 2))]
    try:
        yield
    finally:
        for each in found:
            each.kill()
            each.wait()


@pytest.fixture(scope="module")
def drill() -> Said:
    """What the drill said."""
    command = [sys.executable, "-m", "tests.emulation.mutations_drill", *NAMES]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    found: Said = {}
    with contextlib.ExitStack() as stolen, subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as run:
        assert run.stdin is not None and run.stdout is not None and run.stderr is not None
        for line in run.stdout:
            if not line.startswith("{"):
                continue
            said = json.loads(line)
            stolen.close()
            if said["name"] == "steal":
                stolen.enter_context(thieves())
                run.stdin.write("\n")
                run.stdin.flush()
            found.setdefault(said["name"], []).append(said)
        errors = run.stderr.read()
    assert run.returncode == 0, errors[-3000:]
    return found


@pytest.mark.parametrize("name", CAUSES)
def test_a_mutated_instrument_is_degraded_and_names_the_cause(name: str, drill: Said) -> None:
    (said,) = drill[name]
    if "impossible" in said:
        pytest.skip(f"this kernel cannot do that: {said['impossible']}")
    assert len(said["rows"]) == 2
    for row in said["rows"]:
        assert row["status"] == "ok" and row["fidelity"] == "degraded"
        assert CAUSES[name] in row["fidelity_note"]
    of_others = [row for each in drill["nothing"] for row in each["rows"]]
    assert not any(CAUSES[name] in row["fidelity_note"] for row in of_others if name != "stolen core")


def test_what_is_seen_has_the_size_of_what_was_done(drill: Said) -> None:
    rows = {name: said[0]["rows"] for name, said in drill.items() if "rows" in said[0]}
    for row in rows["nothing"]:
        assert abs(row["link_rate_error_pct"]) < 3 and row["out_of_order"] == 0 and row["foreign_bytes"] == 0
    for row in rows["slow port"]:
        assert row["link_rate_error_pct"] == pytest.approx(-5, abs=1.5)
        assert "link d0-h1 is no longer shaped as it was" in row["fidelity_note"]
    for row in rows["foreign packets"]:
        assert 1000 < row["foreign_bytes"] < 20_000
    idle = min(row["foreign_cpu_pct"] for each in drill["nothing"] for row in each["rows"])
    for row in rows["stolen core"]:
        taken = 100 * max(1, usable_cores() // 2) / 3 / usable_cores()
        assert row["foreign_cpu_pct"] > min(50, idle + 0.5 * taken)  # on a busy machine, it is taken from others


def test_a_receivers_port_lets_no_more_through_at_once_than_its_bucket(drill: Said) -> None:
    (found,) = drill["incast"]
    assert found["as set"] <= 1.01
    assert found["four times"] > 1.2


def test_a_late_rank_gets_no_unpaid_burst_of_the_receivers_port() -> None:
    command = [sys.executable, "-m", "tests.emulation.incast_drill"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ideal_ms, times_ms = json.loads(done.stdout.splitlines()[-1])
    assert min(times_ms) >= ideal_ms
    assert sorted(times_ms)[len(times_ms) // 2] < ideal_ms + 8
