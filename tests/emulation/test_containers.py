"""A checkout that cannot be written, another current folder, no home and no TMPDIR: as in a container."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from tests.emulation.machine import ROOT, command

# A mount namespace in which the checkout is read-only. Root may make one; other users in a user namespace.
MOUNTING = ["unshare", *(["--user", "--map-root-user"] if os.geteuid() else []), "--mount"]
BIND = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
READ_ONLY = [*MOUNTING, "sh", "-c", BIND, str(ROOT)]


def _can_mount() -> bool:
    try:
        return subprocess.run([*READ_ONLY, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not _can_mount(), reason="a folder cannot be mounted read-only")


def run(tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "TESTBED_CACHE")}
    return subprocess.run(
        [*READ_ONLY, *command(tmp_path / "results", "network=loopback", "repeats=1", "bandwidths=100", *words)],
        cwd=tmp_path,
        env=kept | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(300)
def test_a_read_only_checkout_needs_a_cache_elsewhere(tmp_path: Path) -> None:
    refused = run(tmp_path, "seed=12345")  # a seed whose weights are in no cache
    assert refused.returncode == 2, refused.stderr[-2000:]
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "Read-only file system" in last and "TESTBED_CACHE" in last
    assert "Traceback" not in refused.stderr
    done = run(tmp_path, "seed=12345", TESTBED_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (pd.read_csv(tmp_path / "results" / "latest" / "results.csv").status == "ok").all()
    assert list((tmp_path / "cache").iterdir())
