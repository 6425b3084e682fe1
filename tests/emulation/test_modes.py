"""Every compute mode through actors, on both backends: rows are verified and say their mode, hold equals replay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from testbed.network.probe import try_mininet
from tests.emulation.machine import ROOT, SMALL
from topologies.link_graph import star

WITHOUT_MININET = try_mininet(star(2)).reason
BACKENDS = [
    pytest.param("mininet", marks=pytest.mark.skipif(bool(WITHOUT_MININET), reason=WITHOUT_MININET)),
    "loopback",
]
# The small model's emulated compute times become tens of milliseconds, longer than the arithmetic of this machine.
SLOW = ["time_scale=500", "bandwidths=20000", "devices=2", "repeats=3", "astra.groups=1", "point_budget_s=20"]
METHODS = {"single", "sequence", "astra"}
# Of the median of three passes: sleeping and computing until a slot is over end at the same time, and other programs
# delay both.
NEAR = 0.1

pytestmark = [pytest.mark.emulation, pytest.mark.timeout(600)]


def rows(experiment: str, backend: str, results: Path, *words: str) -> pd.DataFrame:
    """The rows of a run, all ok and verified where they are measured."""
    command = [sys.executable, "-m", "testbed.run", f"+experiment={experiment}", *SMALL, *SLOW, f"network={backend}"]
    command += [f"methods=[{','.join(sorted(METHODS))}]", "astra.optimizations=paper", f"results_dir={results}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = pd.read_csv(results / "latest" / "results.csv")
    assert (found.status == "ok").all() and set(found.method) == METHODS
    measured = found[found.compute_mode != "analytic"]
    assert set(measured.network) == {backend} and measured.verified.astype(bool).all()
    assert (measured.max_abs_err <= measured.allowed_abs_err).all()
    assert (measured.payload_bytes == measured.formula_bytes).all()
    assert (measured.latency_ms > 0).all()
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["hold", "execute"])
def test_a_mode_with_real_arithmetic(backend: str, mode: str, tmp_path: Path) -> None:
    found = rows("smoke", backend, tmp_path, f"compute_mode={mode}")
    assert set(found.compute_mode) == {mode}
    if mode == "execute":  # this machine's own speed, which no cost model knows
        assert found.residual_pct.isna().all()
    else:
        assert found.residual_pct.notna().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_hold_agrees_with_replay_and_both_stand_beside_the_cost_model(backend: str, tmp_path: Path) -> None:
    found = rows("clock_check", backend, tmp_path)
    assert set(found.compute_mode) == {"hold", "replay", "analytic"}
    analytic = found[found.compute_mode == "analytic"]
    assert analytic.verified.isna().all() and analytic.max_abs_err.isna().all()
    medians = found.groupby(["method", "compute_mode"]).latency_ms.median().unstack()
    assert (abs(medians.hold / medians.replay - 1) < NEAR).all(), medians
