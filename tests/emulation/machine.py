"""What tests on real emulated hosts share: the command, what it could leave behind, and the processes of a run."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from testbed.network.probe import try_mininet
from topologies.link_graph import star

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(try_mininet(star(2)).reason), reason=try_mininet(star(2)).reason),
]
ROOT = Path(__file__).parents[2]
# In the environment of everything that these tests start, so that others' runs beside them are not taken for theirs.
MARK, OURS = "TESTBED_TESTS", str(os.getpid())
os.environ[MARK] = OURS
SMALL = ["model.layers=4", "model.hidden=96", "model.heads=12", "tokens=50", "astra.codebook_size=64"]


def command(results: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "testbed.run", "+experiment=smoke", f"results_dir={results}", *SMALL, *words]


# What the testbed and its libraries call their temporary files; other programs write to /tmp too.
OUR_FILES = ("testbed", "ray", "tmp", "torch", "mn", "pymp")


def machine_state() -> dict[str, set[str]]:
    """What a run could leave behind: interfaces, network namespaces, files, processes of Ray or of the testbed."""
    words = ("ray::", "raylet", "gcs_server", "testbed.", "mininet:")
    processes = {
        f"{process.pid} {line[:60]}"
        for process in psutil.process_iter(["cmdline"])
        if any(word in (line := " ".join(process.info["cmdline"] or [])) for word in words) and not _of_others(process)
    }
    folders = {"/tmp", tempfile.gettempdir()}
    return {
        "interfaces": set(psutil.net_if_stats()),
        "temporary files": {name for folder in folders for name in os.listdir(folder) if name.startswith(OUR_FILES)},
        "/dev/shm": set(os.listdir("/dev/shm")),
        "processes": processes,
    }


def _of_others(process: psutil.Process) -> bool:
    """Whether its environment is without our mark; of Ray's that have overwritten theirs, that of the process above.

    What nobody is above of any more counts as ours.
    """
    try:
        for each in (process, *process.parents()):
            if environment := each.environ():
                return each.pid != 1 and environment.get(MARK) != OURS
    except psutil.Error:
        pass
    return False


def actor(below: psutil.Process, rank: int) -> psutil.Process:
    """The actor of a rank, among the processes below one: the one whose host has the rank's data address."""
    for process in below.children(recursive=True):
        routes = Path(f"/proc/{process.pid}/net/fib_trie")
        if process.name().startswith("ray::DeviceW") and re.search(
            rf"-- 10\.2\.0\.{rank + 1}\n +/32 host LOCAL", routes.read_text()
        ):
            return process
    raise AssertionError(f"no actor of rank {rank}")
