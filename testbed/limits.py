"""What this process may use, which is often less than the machine has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

from testbed.errors import EnvironmentFault

MOUNT, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """The cores that the scheduler's affinity (``taskset``, a batch system) and CPU quotas (a container) leave; >= 1.

    A quota of part of a core counts as none of it, unless it is all that there is.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    return max(1, int(min([float(allowed), *_quotas()])))


def refuse_small_quota() -> None:
    """EnvironmentFault where a CPU quota leaves less than one core.

    Such a quota stops all processes for most of each of its periods, often a tenth of a second, and no point would be
    valid.
    """
    cores = min(_quotas(), default=1.0)
    if cores < 1:
        raise EnvironmentFault(
            f"CPU quota={cores:g} cores: emulation needs at least 1; start the container with more, as --cpus=2"
        )


def throttled_s() -> float:
    """Seconds for which CPU quotas have stopped this process's control groups, and all groups above them, so far."""
    total = 0.0
    for folder in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or no group with a quota
            counters = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
            # Versions 2 and 1 of control groups.
            total += int(counters.get("throttled_usec", 0)) / 1e6 + int(counters.get("throttled_time", 0)) / 1e9
    return total


def memory_limit_bytes() -> int | None:
    """The memory that control groups (a container) leave to this process and its siblings; None without a limit."""
    found = []
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # versions 2 and 1
            with contextlib.suppress(OSError, ValueError):  # no such file, or the word max
                found.append(int((folder / name).read_text()))
    return min((limit for limit in found if limit < psutil.virtual_memory().total), default=None)


def limit_threads() -> None:
    """Let OpenMP, so torch too, start no more threads than a CPU quota leaves cores; before torch is imported.

    OpenMP knows the affinity but no quota. Under a quota, more threads only wait for each other.
    """
    if usable_cores() < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def _quotas() -> Iterator[float]:
    """The CPU quotas of this process's control groups and of all groups above them, in cores."""
    for folder in _groups("cpu"):
        try:
            if (folder / "cpu.max").exists():  # version 2
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue  # a group without the controller, or the root group, has no quota


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups with this controller, and of all groups above them."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2 has all of them in one tree
            mounts = [MOUNT, MOUNT / "unified"]
        elif controller in controllers.split(","):
            mounts = [MOUNT / controllers, MOUNT / controller]
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            yield from (mount / group for group in (inner, *inner.parents))
