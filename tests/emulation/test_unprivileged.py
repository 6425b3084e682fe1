"""A user without root: network=auto emulates in a user namespace, or falls back to loopback without namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.emulation.machine import ROOT, command, machine_state

# As root, the run gets a user of its own in a user namespace: no capability in the machine's network namespace. This
# user has no entry in the list of users.
OTHER_USER = ["unshare", "--user", "--map-user=4321", "--map-group=4321"]
AS_USER = OTHER_USER if os.geteuid() == 0 else []
# A user who can make no namespace, as where a distribution forbids it: the number below the outer one is limited to 1.
ONE_NAMESPACE = ["sh", "-c", 'echo 1 >/proc/sys/user/max_user_namespaces && exec "$@"', "limited"]
WITHOUT_NAMESPACES = ["unshare", "--user", "--map-root-user", *ONE_NAMESPACE, *OTHER_USER]
WHO = "import os; print(os.geteuid())"


def _unprivileged(words: list[str]) -> bool:
    """Whether a command behind these words starts, as another user than root."""
    try:
        done = subprocess.run([*words, sys.executable, "-c", WHO], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() != "0"


def needs(words: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not _unprivileged(words), reason="no user namespace to be another user in")


def run(words: list[str], tmp_path: Path) -> tuple[pd.DataFrame, dict[str, object], str]:
    """Rows, what the manifest says of the cluster, and the messages of a smoke run as an unprivileged user."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = pd.read_csv(tmp_path / "latest" / "results.csv")
    assert (rows.status == "ok").all() and rows.verified.all()
    (cluster,) = json.loads((tmp_path / "latest" / "manifest.json").read_text())["runs"][-1]["clusters"]
    return rows, cluster, done.stderr


@needs(AS_USER)
@pytest.mark.timeout(300)
def test_smoke_emulates_without_root(tmp_path: Path) -> None:
    before = machine_state()
    rows, cluster, said = run([*AS_USER, *command(tmp_path, "repeats=1", "bandwidths=100")], tmp_path)
    assert set(rows.network) == {"mininet"} and "falling back" not in said
    assert ("no real-time priority" in said) == (cluster["replay_priority"] == "normal")
    assert cluster["congestion_control"] == ["cubic"]  # a user namespace's root may choose in its own network
    assert machine_state() == before


@needs(WITHOUT_NAMESPACES)
@pytest.mark.timeout(300)
def test_smoke_runs_on_loopback_without_root_and_namespaces(tmp_path: Path) -> None:
    rows, cluster, said = run([*WITHOUT_NAMESPACES, *command(tmp_path, "repeats=1", "bandwidths=100")], tmp_path)
    assert set(rows.network) == {"loopback"}
    assert "new namespaces are not permitted" in said and "user.max_user_namespaces" in said
    assert "falling back to loopback" in said and "testbed.doctor" in said
    assert cluster["congestion_control"]  # CUBIC, or what this user is allowed


@needs(AS_USER)
def test_the_doctor_reports_what_this_user_can_do(tmp_path: Path) -> None:
    words = [*AS_USER, "taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
    done = subprocess.run(
        [*words, sys.executable, "-m", "testbed.doctor"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr
    lines = {line[9:28].strip(): line for line in done.stdout.splitlines()}
    assert lines["cores"].startswith("limited") and "1 of " in lines["cores"]
    assert lines["user"].startswith("ok       user                not root, which is not needed")
    assert ("without an entry in the list of users" in lines["user"]) or not AS_USER
    assert "in a user namespace" in lines["namespaces"] and "links shaped by tbf" in lines["Mininet"]
    assert lines["cluster"].startswith("ok") and "2 devices on mininet up in" in lines["cluster"]
