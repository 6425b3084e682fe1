"""A run leaves nothing behind, whatever ends it, SIGKILL included.

The command that the user started is only a supervisor. It runs the same command again as a child:

mininet   in fresh network, process and mount namespaces (``unshare --kill-child``). A private /dev/shm holds every
          temporary file. When the supervisor dies, the kernel ends every process in the namespaces and with them go the
          interfaces, bridges and files. Nothing is cleaned up by name.
loopback  as a child that dies when the supervisor dies. What the child leaves running becomes the supervisor's, which
          ends it by id and removes the temporary folder. If the supervisor is killed, a janitor of a few shell lines,
          which waits for its end, does that; it knows the run's processes by their open files in the folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from testbed.network.probe import tool_path

_BACKEND, _SCRATCH = "TESTBED_BACKEND", "TESTBED_SCRATCH"
ASK_AGAIN_S, ASK_TIMES = 6.0, 5
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# Ends at a line from the supervisor. If its input closes without one, the supervisor was killed.
JANITOR = """
read -r line && exit
for round in 1 2 3 4 5 6 7 8; do
    find /proc/[0-9]*/fd -lname "$1/*" 2>/dev/null | cut -d/ -f3 | sort -u | xargs -r kill -9 2>/dev/null
    rm -rf "$1"; sleep 0.25
done
"""
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
        return run_child(command, environment, _first_child)
    # /tmp and not TMPDIR: Ray's socket paths must stay below 107 characters.
    folder = tempfile.mkdtemp(prefix="testbed-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)
    janitor = subprocess.Popen(["sh", "-c", JANITOR, "janitor", folder], stdin=subprocess.PIPE, start_new_session=True)
    adopt_orphans()
    before = descendants()
    try:
        return run_child(command, {**os.environ, _BACKEND: backend, _SCRATCH: folder}, lambda pid: pid)
    finally:
        end_descendants(keep=before)
        shutil.rmtree(folder, ignore_errors=True)
        janitor.communicate(b"clean\n")


def adopt_orphans() -> None:
    """From now on, processes below this one whose parents end become its children, wherever they have detached to."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> set[psutil.Process]:
    """The processes below this one."""
    return set(psutil.Process().children(recursive=True))


def end_descendants(keep: set[psutil.Process], timeout_s: float = 10.0) -> None:
    """SIGKILL by id every process below this one that is not in ``keep``, until there is none."""
    deadline = time.monotonic() + timeout_s
    while (found := descendants() - keep) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=1)


def _first_child(pid: int) -> int:
    """The process that ``unshare`` forked: the init of the new namespaces."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def run_child(command: list[str], environment: dict[str, str], target: Callable[[int], int]) -> int:
    """Run a child that cannot outlive us, pass signals on to ``target(its pid)``, return its exit code.

    A signal is passed on again while the child does not end, because an exception that a signal handler raises is lost
    in libraries' callbacks. A child that takes too long, or of which the user asks three times, is killed.
    """
    asked: list[int] = []
    next_s = float("inf")

    def forward() -> None:
        nonlocal next_s
        next_s = time.monotonic() + ASK_AGAIN_S
        try:
            os.kill(target(child.pid), asked[0])
        except (OSError, IndexError):
            child.kill()

    def ask(number: int, _frame: object) -> None:
        asked.append(number)
        if len(asked) > 2:
            child.kill()
        else:
            forward()

    # A session of its own, so that Ctrl-C on the terminal reaches the run once, through us.
    child = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    )
    times = 0
    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1.0)
            if time.monotonic() > next_s:
                times += 1
                forward() if times <= ASK_TIMES else child.kill()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = child.returncode
    if asked and code:  # whatever the run made of it, it ended by this signal
        return 128 + asked[0]
    return code if code >= 0 else 128 - code
