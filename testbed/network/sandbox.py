"""A run leaves nothing behind, whatever ends it, SIGKILL included.

The command that the user started is only a supervisor. It runs the same command again as a child:

mininet   in fresh network, process and mount namespaces (``unshare --kill-child``). A private /dev/shm holds every
          temporary file. When the supervisor dies, the kernel ends every process in the namespaces and with them go the
          interfaces, bridges and files. Nothing is cleaned up by name.
loopback  as a child that gets SIGTERM when the supervisor dies, with a temporary folder that whichever of the two
          survives removes. Processes that Ray has left are ended by id.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from testbed.network.probe import tool_path

_BACKEND, _SCRATCH = "TESTBED_BACKEND", "TESTBED_SCRATCH"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def inside() -> bool:
    """Whether this process is the supervised one."""
    return _BACKEND in os.environ


def scratch() -> Path:
    """The run's temporary folder. Only in the supervised process."""
    return Path(os.environ[_SCRATCH])


def prctl(option: int, value: int) -> None:
    """Linux's prctl; nothing elsewhere."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def supervise(argv: list[str], backend: str, module: str = "testbed.run") -> int:
    """Run ``python -m module`` with ``argv`` again in the sandbox of a backend; returns its exit code."""
    command = [sys.executable, "-m", module, *argv]
    if backend == "mininet":
        namespaces = ["--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
        command = ["unshare", *namespaces, sys.executable, "-m", "testbed.network.init", *command]
        environment = {**os.environ, _BACKEND: backend, _SCRATCH: "/dev/shm/run", "PATH": tool_path()}
        return _run(command, environment, signal.SIGKILL, _first_child)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # /tmp and not TMPDIR: Ray's socket paths must stay below 107 characters.
    folder = tempfile.mkdtemp(prefix="testbed-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)
    try:
        return _run(command, {**os.environ, _BACKEND: backend, _SCRATCH: folder}, signal.SIGTERM, lambda pid: pid)
    finally:
        end_descendants()
        shutil.rmtree(folder, ignore_errors=True)


def end_descendants() -> None:
    """SIGKILL every process below this one, by id."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        child.kill()
    psutil.wait_procs(children, timeout=5)


def _first_child(pid: int) -> int:
    """The process that ``unshare`` forked: the init of the new namespaces."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _run(command: list[str], environment: dict[str, str], death: signal.Signals, target: Callable[[int], int]) -> int:
    """Run a child that cannot outlive us, pass signals on to ``target(its pid)``, return its exit code."""
    interrupts = 0

    def forward(number: int, _frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 2:  # asked three times: no more waiting for an orderly end
            child.kill()
            return
        try:
            os.kill(target(child.pid), number)
        except (OSError, IndexError):
            child.kill()

    # A session of its own, so that Ctrl-C on the terminal reaches the run once, through us.
    child = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, death)
    )
    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
