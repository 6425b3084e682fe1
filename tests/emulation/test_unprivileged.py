"""A user without root: network=auto falls back to loopback, and smoke runs there from begin to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.emulation.machine import ROOT, command

# As root, the run gets a user of its own in a user namespace: no capability in the machine's network namespace.
AS_USER = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
WHO = "import os; print(os.geteuid())"


def _can_be_unprivileged() -> bool:
    try:
        done = subprocess.run([*AS_USER, sys.executable, "-c", WHO], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() != "0"


needs_user = pytest.mark.skipif(not _can_be_unprivileged(), reason="root, and no user namespace to be another user in")


@needs_user
@pytest.mark.timeout(300)
def test_smoke_runs_without_root(tmp_path: Path) -> None:
    words = [*AS_USER, *command(tmp_path, "repeats=1", "bandwidths=100")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "WARNING: falling back to loopback" in done.stderr and "it needs root" in done.stderr
    rows = pd.read_csv(tmp_path / "latest" / "results.csv")
    assert set(rows.network) == {"loopback"} and (rows.status == "ok").all() and rows.verified.all()
    (cluster,) = json.loads((tmp_path / "latest" / "manifest.json").read_text())["runs"][-1]["clusters"]
    assert cluster["congestion_control"]  # CUBIC, or what this user is allowed
