"""The sandbox: a run leaves no process, interface or file behind, however it ends, SIGKILL included.

The command that the user starts is only a supervisor. It runs the same command again as a child:

mininet   In new network, process and mount namespaces (``unshare --kill-child``). A user without root first gets a
          user namespace, in which the kernel allows the others. A private /dev/shm holds all temporary files. When the
          supervisor dies, the kernel kills every process in the namespaces, and the interfaces, bridges and files
          disappear with them. Nothing is cleaned up by name.
loopback  As a child that dies when the supervisor dies. The supervisor adopts the child's orphans, kills them by
          process id and removes the temporary folder. If the supervisor itself is killed, a short shell script (the
          janitor) does that. It recognizes the run's processes by their open files in the folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
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

_BACKEND, _SCRATCH = "TESTBED_BACKEND", "TESTBED_SCRATCH"
RESEND_S, RESENDS = 6.0, 5  # how long after a signal it is sent again, and how often, before the child is killed
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# Exits on a line from the supervisor. If its input closes without one, the supervisor has been killed.
JANITOR = """
read -r line && exit
for round in 1 2 3 4 5 6 7 8; do
    find /proc/[0-9]*/fd -lname "$1/*" 2>/dev/null | cut -d/ -f3 | sort -u | xargs -r kill -9 2>/dev/null
    rm -rf "$1"; sleep 0.25
done
"""
SYSTEM_FOLDERS = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def inside() -> bool:
    """Whether this process runs in the sandbox."""
    return bool(os.environ.get(_BACKEND) and os.environ.get(_SCRATCH))


def scratch() -> Path:
    """The run's temporary folder; only in the sandbox."""
    return Path(os.environ[_SCRATCH])


def prctl(option: int, value: int) -> None:
    """Call Linux's prctl; no effect on other systems."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def supervise(argv: list[str], backend: str, module: str = "testbed.run") -> int:
    """Run ``python -m module`` with ``argv`` in the sandbox of a backend. Returns the exit code."""
    command = [sys.executable, "-m", module, *argv]
    if backend == "mininet":
        return run_child(in_namespaces(command), namespace_environment(), _first_child)
    # /tmp and not TMPDIR: Ray's socket paths must stay below 107 characters.
    folder = tempfile.mkdtemp(prefix="testbed-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)
    environment = {**os.environ, "PATH": tool_path()}
    janitor = subprocess.Popen(
        ["sh", "-c", JANITOR, "janitor", folder], env=environment, stdin=subprocess.PIPE, start_new_session=True
    )
    adopt_orphans()
    before = descendants()
    try:
        return run_child(command, {**environment, _BACKEND: backend, _SCRATCH: folder}, lambda pid: pid)
    finally:
        end_descendants(keep=before)
        shutil.rmtree(folder, ignore_errors=True)
        janitor.communicate(b"clean\n")


def in_namespaces(command: list[str]) -> list[str]:
    """The command that runs ``command`` in new namespaces, behind ``testbed.network.init``."""
    return [*unshare(needs_user_namespace()), sys.executable, "-m", "testbed.network.init", *command]


def namespace_environment() -> dict[str, str]:
    """The environment for ``in_namespaces``."""
    return {**os.environ, _BACKEND: "mininet", _SCRATCH: "/dev/shm/run", "PATH": tool_path()}


def unshare(user_namespace: bool) -> list[str]:
    """The words before a command that run it in new namespaces. user_namespace: in one, whose root is this user."""
    new = ["--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    return ["unshare", *(["--user", "--map-root-user"] if user_namespace else []), *new]


@functools.cache
def needs_user_namespace() -> bool:
    """Whether this user can make the other namespaces only in a user namespace: not root, or root in a container."""
    return os.geteuid() != 0 or bool(refusal(False) and not refusal(True))


def refusal(user_namespace: bool) -> str:
    """What the system says where it makes no new namespaces (see ``unshare``); empty where it makes them."""
    command, environment = [*unshare(user_namespace), "true"], {"PATH": tool_path()}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except OSError as error:
        return str(error)
    return (" ".join(done.stderr.split()) or f"exit code {done.returncode}") if done.returncode else ""


def tool_path() -> str:
    """PATH with the system folders, which it may lack: those of root for other users, all of them for a service."""
    return os.pathsep.join(filter(None, [os.environ.get("PATH", ""), *SYSTEM_FOLDERS]))


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends, even if they have detached themselves."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> set[psutil.Process]:
    """All descendants of this process."""
    return set(psutil.Process().children(recursive=True))


def end_descendants(keep: set[psutil.Process], timeout_s: float = 10.0) -> None:
    """Kill all descendants that are not in ``keep``, by process id, until none is left or ``timeout_s`` is over."""
    deadline = time.monotonic() + timeout_s
    while (found := descendants() - keep) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=1)


def _first_child(pid: int) -> int:
    """The process that ``unshare`` has forked, which is the init of the new namespaces."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def run_child(command: list[str], environment: dict[str, str], target: Callable[[int], int]) -> int:
    """Run a child that cannot outlive this process, forward signals to ``target(its pid)``, return its exit code.

    A signal is sent again while the child does not end, because callbacks of libraries may swallow an exception from a
    signal handler. A child that does not end in time, or after three signals from the user, is killed.
    """
    received: list[int] = []
    next_s = float("inf")

    def forward() -> None:
        nonlocal next_s
        next_s = time.monotonic() + RESEND_S
        try:
            os.kill(target(child.pid), received[0])
        except (OSError, IndexError):
            child.kill()

    def on_signal(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) > 2:
            child.kill()
        else:
            forward()

    # The child gets its own session, so that Ctrl-C on the terminal reaches it once, through this process.
    child = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    )
    resends = 0
    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1.0)
            if time.monotonic() > next_s:
                resends += 1
                forward() if resends <= RESENDS else child.kill()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = child.returncode
    if received and code:  # the signal ended the run, whatever its own exit code says
        return 128 + received[0]
    return code if code >= 0 else 128 - code
