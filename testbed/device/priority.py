"""Real-time priority: an emulated device wakes on time, not when another process yields the core."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

NORMAL, REALTIME = "normal", "real-time"


@contextlib.contextmanager
def realtime() -> Iterator[str]:
    """Run all threads of this process at real-time priority. Yields REALTIME, or NORMAL where the system refuses.

    Meant for work that mostly sleeps: arithmetic at this priority would keep the kernel from forwarding packets.
    """
    try:
        _raise_limit()
        _all_threads(os.SCHED_RR, 1)
        reached = REALTIME
    except (AttributeError, ImportError, OSError, ValueError):  # not available on this system, or not permitted
        reached = NORMAL
    try:
        yield reached
    finally:
        if reached == REALTIME:
            _all_threads(os.SCHED_OTHER, 0)


def _raise_limit() -> None:
    """Use what an administrator has granted: without root, priorities up to the soft limit are permitted."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_RTPRIO)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_RTPRIO, (hard, hard))


def attainable_priority() -> str:
    """The priority that ``realtime`` reaches for processes of this user."""
    with realtime() as reached:
        return reached


def _all_threads(policy: int, priority: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))
