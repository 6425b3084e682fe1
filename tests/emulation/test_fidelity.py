"""Disturbed runs say so: what else the machine does shows in the rows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.emulation.machine import ROOT, command, pytestmark

__all__ = ["pytestmark"]


@pytest.fixture
def busy_cores() -> Iterator[None]:
    """A loop that never ends on every core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def test_a_busy_machine_degrades_every_row(tmp_path: Path, busy_cores: None) -> None:
    words = ["network=mininet", "compute_mode=replay", "methods=[single,sequence]", "bandwidths=100"]
    done = subprocess.run(command(tmp_path, *words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = pd.read_csv(tmp_path / "latest" / "results.csv")
    assert (rows.fidelity == "degraded").all()
    assert rows.fidelity_note.str.contains("other programs kept").all()
    assert "other programs kept" in done.stdout
