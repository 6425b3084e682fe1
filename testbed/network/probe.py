"""Which backends this machine can run: a trial of the steps of a run, in its namespaces, with its links."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.device.priority import REALTIME
from testbed.errors import EnvironmentFault
from testbed.network import sysctls
from testbed.network.sandbox import (
    in_namespaces,
    namespace_environment,
    needs_user_namespace,
    refusal,
    tool_path,
    unshare,
)
from testbed.results.schema import ANALYTIC
from topologies.link_graph import LinkGraph, star

# command -> Debian package that contains it
TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "bridge": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "bash": "bash",
}
QDISCS = {"tbf": "rate 10mbit burst 10kb limit 100kb", "netem": "rate 10mbit"}
TRIAL_S, TRIAL_DEVICE_S = 30.0, 1.0
COSTS = {
    "net.ipv4.tcp_slow_start_after_idle": "messages after an idle time of a connection are sent slowly",
    "net.ipv6.conf.all.disable_ipv6": "router solicitations of IPv6 cross the data links",
}
PRIORITY_REMEDY = "a line 'USER - rtprio 1' in /etc/security/limits.conf and a new login, or ulimit -r 1 as root"
# What may forbid user namespaces: the sysctl, the value that forbids them, one that allows them.
USER_NAMESPACES = (
    ("kernel.unprivileged_userns_clone", "0", "1"),  # Debian
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),  # Ubuntu
    ("user.max_user_namespaces", "0", "10000"),
)


@dataclass(frozen=True)
class Trial:
    """What a trial of the Mininet backend found. reason: why it cannot run, with a remedy; empty if it can.

    facts: ``priority`` that its processes reach, ``sysctl_refused``, ``keeps_packet_order``, ``qdiscs``.
    """

    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@functools.cache
def kernel_qdiscs() -> tuple[str, ...]:
    """The queueing disciplines of this kernel, tried on a link in a separate network namespace."""
    script = "ip link add probe0 type veth peer name probe1 || exit 1\n" + "\n".join(
        f"tc qdisc replace dev probe0 root {name} {options} 2>/dev/null && echo {name}"
        for name, options in QDISCS.items()
    )
    done = subprocess.run(
        [*unshare(needs_user_namespace()), "sh", "-c", script],
        capture_output=True,
        text=True,
        env={"PATH": tool_path()},
        check=False,
    )
    return tuple(done.stdout.split())


@functools.cache
def try_mininet(graph: LinkGraph) -> Trial:
    """Bring up the hosts and links of a graph, as a run does, and take them down again. It takes a second or two."""
    if not sys.platform.startswith("linux"):
        return Trial(f"Mininet needs Linux, this is {sys.platform}")
    missing = [tool for tool in TOOLS if shutil.which(tool, path=tool_path()) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        return Trial(f"{', '.join(missing)} not found (on Debian: apt-get install {packages})")
    if refused := namespaces_refused():
        return Trial(refused)
    command = in_namespaces([sys.executable, "-m", "testbed.network.trial"])
    described, limit_s = json.dumps([graph.devices, graph.shares]), TRIAL_S + TRIAL_DEVICE_S * graph.devices
    try:
        done = subprocess.run(
            command,
            input=described,
            capture_output=True,
            text=True,
            timeout=limit_s,
            env=namespace_environment(),
            check=False,
        )
        output, errors = done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        output, errors = _text(error.stdout), f"no end after {limit_s:g} s"
    said = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if said and "facts" in said[-1]:
        return Trial(facts=said[-1]["facts"])
    step = said[-1]["step"] if said else "the sandbox"
    reason = (errors.strip().splitlines() or ["it ended without a word"])[-1].removeprefix("error: sandbox: ")
    return Trial(f"{step}: {reason}")


def shortcomings(trial: Trial) -> list[str]:
    """What a backend that can run lacks on this machine, and what that costs. A sentence each."""
    found = []
    if trial.facts["priority"] != REALTIME:
        found.append(
            "no real-time priority: emulated devices may wake late while other programs use the cores. Points whose "
            f"devices wake too late are marked degraded. What gives it: {PRIORITY_REMEDY}"
        )
    for name, value in trial.facts["sysctl_refused"].items():
        cost = COSTS.get(name, "see docs/DESIGN.md")
        found.append(f"the kernel does not set {name}, which stays {value}: {cost}. Points are marked degraded")
    if not trial.facts["keeps_packet_order"]:
        found.append(
            "this kernel has no net.core.rps_default_mask: packets may overtake each other, and links at high rates "
            "are slower than requested. Both are measured, and such points are marked degraded"
        )
    return found


def namespaces_refused() -> str:
    """Why this user can make no namespaces, with what allows them; empty if they can be made."""
    said = refusal(needs_user_namespace()).removeprefix("unshare: ")
    if not said:
        return ""
    remedies = [f"sudo sysctl -w {name}={to}" for name, forbids, to in USER_NAMESPACES if _setting(name) == forbids]
    if "No space left" in said:  # of the outer namespace, whose value is not shown here
        remedies.append("sudo sysctl -w user.max_user_namespaces=10000")
    others = "start the container with --privileged" if os.geteuid() == 0 else "root; in a container, --privileged too"
    remedy = (remedies or [others])[0]
    return f"new namespaces are not permitted ({said}); what allows them: {remedy}"


def _setting(name: str) -> str:
    """The value of a sysctl; empty where the kernel has none of this name."""
    try:
        return Path(sysctls.file_of(name)).read_text().strip()
    except OSError:
        return ""


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def choose_backend(requested: str, graph: LinkGraph | None = None) -> str:
    """The backend for a request: ``auto`` means mininet where a run of this graph could stand, else loopback.

    graph: the links to try; by default two devices at a switch. EnvironmentFault if mininet is requested and cannot
    run.
    """
    if requested in ("loopback", ANALYTIC):
        return requested
    reason = try_mininet(graph or star(2)).reason
    if requested == "auto":
        return "loopback" if reason else "mininet"
    if reason:
        raise EnvironmentFault(f"network=mininet: {reason}; or use network=loopback")
    return requested
