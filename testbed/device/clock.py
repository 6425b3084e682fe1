"""The device's clock: how long a segment of computation takes on the emulated device.

Two cores cannot compute for eight devices in real time. The clock therefore gives each segment its emulated compute
time, in one of three modes:

execute  Compute as fast as this machine can: on real hardware, and in the pass that verifies a method.
hold     Compute, then wait until the emulated compute time is over. An overrun is counted and degrades the point.
replay   Wait for the emulated compute time and return the output that the verifying pass recorded. The code path and
         the bytes on the wire are real; only the arithmetic is skipped.

``time_scale`` k multiplies every emulated compute time by k. Links are slower by the same factor, and results are
divided by it.

In hold and replay, the device is never idle by itself: a segment begins when the one before it has ended, or when the
message for which the device was blocked has arrived. What this machine needs between them is made up for, and the sum
is reported. What the emulated device needs there is in its profile: the launches of kernels, and the cost of messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from testbed.device.replay import ReplayCache
from testbed.device.spec import Device
from testbed.device.traffic import Traffic
from testbed.work import Work

T = TypeVar("T")
KINDS = ("compute", "encode", "decode")

# The clock sleeps, then spins for the last part of a segment. A core of a virtual machine takes 0.1 to 0.3 ms to wake
# up, which would add up over the dozens of segments of a pass. With spinning, four devices on 2 cores end segments of
# 5 ms 0.01 to 0.02 ms late; without it, 0.11 to 0.14 ms.
SPIN_S = 150e-6
# A busy period overruns if it ends later than its emulated compute time by more than 0.5 ms of the device plus 5%.
TOLERANCE_S, TOLERANCE_SHARE = 0.5e-3, 0.05


class DeviceClock:
    """Runs the segments of one rank's forward pass in the chosen mode.

    device: the emulated device. After ``finish``: ``seconds`` has the time for each kind of segment, ``works`` the work
    of each segment, ``overruns`` is the number of busy periods that overran their emulated compute time, ``late_s`` the
    total lateness of all busy periods, and ``made_up_s`` the time between segments that was made up for, in seconds of
    this machine. A busy period lasts from one message for which the device was blocked to the next one.
    """

    def __init__(self, mode: str = "execute", device: Device | None = None, time_scale: float = 1.0):
        self.mode, self.device, self.time_scale = mode, device or Device(), time_scale
        self._cache = ReplayCache()
        self._recording = False
        self.restart()

    def restart(self, traffic: Traffic | None = None) -> None:
        """Reset the clock before a forward pass.

        traffic: counters of the group that the pass uses. They show when a message was awaited.
        """
        self._traffic = traffic or Traffic()
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.overruns = 0
        self.late_s = self.made_up_s = 0.0
        self._cache.rewind()
        self.works: list[Work] = []
        # Of the current busy period: when it is due to end, when it ended, and its emulated compute time.
        self._due = self._ended = self._busy_s = self._resumed_s = 0.0

    def record(self, forward: Callable[[], T]) -> T:
        """Run a forward pass in mode ``execute`` and record its segments' outputs for replay."""
        self._cache, self._recording = ReplayCache(), True
        try:
            return self._cache.record(forward)
        finally:
            self._recording = False

    def run(self, kind: str, work: Work, segment: Callable[[], T]) -> T:
        """Run one segment and return its output.

        kind: compute, encode or decode. work: the kernels that it runs.

        A segment must not modify tensors that another segment returned, because replay returns the same tensors again.
        A replayed tensor has values only if torch code outside the segments has read them (testbed.device.replay).
        """
        begin = time.monotonic()
        self.works.append(work)
        if self.mode == "execute":
            output = self._cache.add(segment) if self._recording else segment()
            self.seconds[kind] += time.monotonic() - begin
            return output
        start = self._begin_segment(begin)
        compute_s = self.time_scale * self.device.seconds(work)
        self._due += compute_s
        self._busy_s += compute_s
        output = self._cache.next() if self.mode == "replay" else segment()
        _wait_until(self._due)
        self._ended = self._traffic.computed_s = time.monotonic()
        self.seconds[kind] += self._ended - start
        return output

    def finish(self) -> None:
        """Close the last busy period of a pass."""
        self._close_busy_period()
        self._ended = 0.0

    def _begin_segment(self, now: float) -> float:
        """Continue the busy period, or begin a new one if the device was blocked since the last segment.

        Returns when the emulated device begins with the segment: earlier than now by what this machine needs.
        """
        if not self._ended and not self._traffic.resumed_s:  # the pass begins with this segment
            self._due = now
            return now
        if self._traffic.resumed_s != self._resumed_s:
            self._close_busy_period()
            self._resumed_s = self._traffic.resumed_s
            self._due, self._busy_s = max(self._due, self._resumed_s), 0.0
        start = max(self._ended, self._resumed_s)
        self.made_up_s += max(0.0, now - start)
        return start

    def _close_busy_period(self) -> None:
        late = self._ended - self._due
        self.late_s += max(0.0, late)
        self.overruns += late > self.time_scale * TOLERANCE_S + TOLERANCE_SHARE * self._busy_s
        self._due = max(self._due, self._ended)


def _wait_until(due_s: float) -> None:
    """Return at this monotonic time."""
    time.sleep(max(0.0, due_s - SPIN_S - time.monotonic()))
    while time.monotonic() < due_s:
        pass
