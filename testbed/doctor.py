"""``python -m testbed.doctor``: what this machine can do for the testbed, and what helps where it cannot.

Each line says ``ok``, ``limited`` with what that costs, or ``missing`` with what helps. The lines name neither the user
nor the machine, so a report of a problem can quote them. The last line starts a cluster, as a run does.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from testbed.command import run_command
from testbed.errors import TestbedError
from testbed.limits import memory_limit_bytes, refuse_small_quota, usable_cores
from testbed.network.probe import Trial, namespaces_refused, shortcomings, try_mininet
from testbed.network.sandbox import inside, needs_user_namespace, supervise
from topologies.link_graph import link_graph, star

OK, LIMITED, MISSING = "ok", "limited", "missing"
PYTHONS = ((3, 11), (3, 14))  # from and to, as in pyproject.toml
PACKAGES = ("torch", "ray", "mininet", "hydra-core", "pandas", "pyarrow", "matplotlib")
SETUP = "make setup installs it"
GIB = 2**30
CLUSTER_MEMORY = 4 * GIB  # of eight devices with the small model
DEVICES, ROOM_BYTES, DESCRIPTORS = 2, 2 * GIB, 256


@dataclass(frozen=True)
class Finding:
    """One line. text: a value, what its lack costs, or the command that helps."""

    name: str
    state: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:8} {self.name:19} {self.text}"


def main() -> int:
    """Print a line for each part of the machine. Exit code: 0 if a cluster starts, else 1."""
    if inside():
        return _cluster()
    begin = time.monotonic()
    trial = try_mininet(star(DEVICES))
    for check in (_python, _packages, _machine, _files, _user):
        for finding in check():
            print(finding, flush=True)
    for finding in _network(trial):
        print(finding, flush=True)
    backend = "loopback" if trial.reason else "mininet"
    code = supervise([], backend, module="testbed.doctor")
    print(f"{'':8} {'':19} {time.monotonic() - begin:.0f} s; network=auto uses {backend} here", flush=True)
    return int(code != 0)


def _python() -> Iterator[Finding]:
    first, last = (".".join(map(str, version)) for version in PYTHONS)
    fits = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    text = platform.python_version() + ("" if fits else f"; the testbed is for Python {first} to {last}")
    yield Finding("Python", OK if fits else LIMITED, f"{text}, {platform.system()} {platform.release()}")


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, OK, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, MISSING, SETUP)
    yield from _tried("GPU", _gpu)
    yield from _tried("fonts", _font)


def _tried(name: str, check: Callable[[], Finding]) -> Iterator[Finding]:
    """The finding of a check that imports packages. One that cannot be imported is missing, whatever it raises."""
    try:
        yield check()
    except Exception as error:
        reason = " ".join(str(error).split())
        yield Finding(name, MISSING, f"{type(error).__name__}: {reason}; {SETUP}")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", OK, f"{torch.cuda.get_device_name()}, which the testbed does not use")
    return Finding("GPU", OK, "none, and none is needed: devices are emulated on the cores")


def _font() -> Finding:
    from matplotlib.font_manager import findfont

    return Finding("fonts", OK, Path(findfont("DejaVu Sans", fallback_to_default=False)).name)


def _machine() -> Iterator[Finding]:
    usable, all_cores = usable_cores(), psutil.cpu_count() or 1
    text = f"{usable} of {all_cores} usable"
    if usable < all_cores:
        text += " (affinity or a CPU quota)"
    if usable < 2:
        text += "; devices share a core, so runs at high rates take longer (time_scale) and more points are degraded"
    try:
        refuse_small_quota()
        yield Finding("cores", OK if usable > 1 else LIMITED, text)
    except TestbedError as refused:
        yield Finding("cores", MISSING, str(refused))
    free, limit = psutil.virtual_memory().available, memory_limit_bytes()
    free = free if limit is None else min(free, limit)
    text = f"{free / GIB:.1f} GiB available"
    if free < CLUSTER_MEMORY:
        text += "; eight devices need 4 GiB with the small model, ViT-Base and language models more: use fewer devices"
    yield Finding("memory", OK if free >= CLUSTER_MEMORY else LIMITED, text)


def _files() -> Iterator[Finding]:
    for name, folder, what in (
        ("/dev/shm", "/dev/shm", "mount a tmpfs there; Ray keeps its objects in it"),
        ("temporary files", tempfile.gettempdir(), "set TMPDIR to a folder with space"),
        ("current folder", os.getcwd(), "results go to ./results; results_dir=FOLDER names another one"),
    ):
        if not os.access(folder, os.W_OK):
            yield Finding(name, MISSING, f"cannot be written; {what}")
        else:
            free = shutil.disk_usage(folder).free
            text = f"{free / GIB:.1f} GiB free"
            yield Finding(name, OK if free > ROOM_BYTES else LIMITED, text if free > ROOM_BYTES else f"{text}; {what}")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft >= DESCRIPTORS
    yield Finding("open files", OK if enough else LIMITED, f"{soft}" + ("" if enough else f"; ulimit -n {hard} helps"))


def _user() -> Iterator[Finding]:
    import pwd

    who = "root" if os.geteuid() == 0 else "not root, which is not needed"
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        who += ", without an entry in the list of users"
    home = "" if os.environ.get("HOME") else ", HOME is not set"
    yield Finding("user", OK, who + home)


def _network(trial: Trial) -> Iterator[Finding]:
    """The emulated network: what a run needs, tried in the namespaces of a run."""
    if refused := namespaces_refused():
        yield Finding("namespaces", MISSING, refused)
    else:
        yield Finding("namespaces", OK, "in a user namespace" if needs_user_namespace() else "as root")
    if trial.reason:
        yield Finding("Mininet", MISSING, f"{trial.reason}; runs use network=loopback, paced in the transport")
        return
    yield Finding("Mininet", OK, f"{DEVICES} hosts, links shaped by tbf, a message sent")
    ring = try_mininet(link_graph(("h* next",), 1.0, 4))
    forwards = ring.reason or "hosts forward packets for others (topology=ring)"
    yield Finding("forwarding", MISSING if ring.reason else OK, forwards)
    if "netem" in trial.facts["qdiscs"]:
        yield Finding("netem", OK, "shaper=netem is available")
    else:
        text = "not in this kernel, so no shaper=netem: modprobe sch_netem, or on Ubuntu linux-modules-extra"
        yield Finding("netem", LIMITED, text)
    lacking = shortcomings(trial)
    for text in lacking:
        yield Finding("network settings", LIMITED, text)
    if not lacking:
        yield Finding("network settings", OK, "real-time priority, sysctls as asked for, packets stay in order")


def _cluster() -> int:
    """Start a cluster in the sandbox, and send messages."""
    from testbed.session import Session

    backend = os.environ["TESTBED_BACKEND"]
    try:
        with Session(backend, star(DEVICES)) as session:
            session.shape(100)
            median_s = sorted(session.collective_s("all_gather", 10_000, 5))[2]
            control = ", ".join(sorted(set(session.congestion_control()))) or "unknown"
    except TestbedError as error:
        print(Finding("cluster", MISSING, str(error)), flush=True)
        return 1
    text = f"{DEVICES} devices on {backend} up in {session.start_s:.1f} s; 10 KB to each other at 100 Mbps in "
    print(Finding("cluster", OK, f"{text}{1e3 * median_s:.2f} ms, congestion control {control}"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("error", main))
