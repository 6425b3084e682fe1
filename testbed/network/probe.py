"""Which backends this machine can run. Tools and kernel features are probed; missing ones are named."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

from testbed.errors import EnvironmentFault
from testbed.results.schema import ANALYTIC

# command -> Debian package that contains it
TOOLS = {
    "mnexec": "mininet",
    "ip": "iproute2",
    "tc": "iproute2",
    "brctl": "bridge-utils",
    "ifconfig": "net-tools",
    "ethtool": "ethtool",
    "ping": "iputils-ping",
    "unshare": "util-linux",
}
QDISCS = {"tbf": "rate 10mbit burst 10kb limit 100kb", "netem": "rate 10mbit"}


def tool_path() -> str:
    """PATH with the system folders, which an unprivileged shell may lack."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@functools.cache
def kernel_qdiscs() -> tuple[str, ...]:
    """The queueing disciplines of this kernel, tried on a link in a separate network namespace."""
    script = "ip link add probe0 type veth peer name probe1 || exit 1\n" + "\n".join(
        f"tc qdisc replace dev probe0 root {name} {options} 2>/dev/null && echo {name}"
        for name, options in QDISCS.items()
    )
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, env={"PATH": tool_path()}, check=False
    )
    return tuple(done.stdout.split())


def missing_for_mininet() -> list[str]:
    """The reasons why the Mininet backend cannot run here, each with its remedy; empty if it can run."""
    if not sys.platform.startswith("linux"):
        return [f"Mininet needs Linux, this is {sys.platform}"]
    if os.geteuid() != 0:
        return ["it needs root (run with sudo)"]
    reasons = [
        f"{tool} is missing (apt-get install {package})"
        for tool, package in TOOLS.items()
        if shutil.which(tool, path=tool_path()) is None
    ]
    if not reasons and "tbf" not in kernel_qdiscs():
        reasons.append("the kernel cannot shape links (veth and sch_tbf in a new network namespace failed)")
    return reasons


def choose_backend(requested: str) -> str:
    """The backend for a request: ``auto`` means mininet where it can run, else loopback.

    EnvironmentFault if mininet is requested and cannot run.
    """
    if requested in ("loopback", ANALYTIC):
        return requested
    reasons = missing_for_mininet()
    if requested == "auto":
        return "loopback" if reasons else "mininet"
    if reasons:
        raise EnvironmentFault(f"network=mininet: {'; '.join(reasons)}; or use network=loopback")
    return requested
