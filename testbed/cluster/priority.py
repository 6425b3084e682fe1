"""Real-time priority: an emulated device wakes when its slot ends, not when its neighbors yield the core."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

NORMAL, REALTIME = "normal", "real-time"


@contextlib.contextmanager
def realtime() -> Iterator[str]:
    """All threads of this process run at real-time priority inside; yields REALTIME, or NORMAL where that is refused.

    For work that mostly sleeps. Arithmetic at this priority would keep the kernel from moving packets.
    """
    try:
        _all_threads(os.SCHED_RR, 1)
        reached = REALTIME
    except (AttributeError, OSError):  # no such thing on this system, or no right to it
        reached = NORMAL
    try:
        yield reached
    finally:
        if reached == REALTIME:
            _all_threads(os.SCHED_OTHER, 0)


def attainable_priority() -> str:
    """What ``realtime`` reaches for processes of this user."""
    with realtime() as reached:
        return reached


def _all_threads(policy: int, priority: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))
