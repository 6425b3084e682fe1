"""The device's clock: how long a segment of computation takes on the emulated device.

Two cores cannot compute for eight devices in real time. The clock therefore gives each segment its emulated compute
time, in one of three modes:

execute  Compute as fast as this machine can: on real hardware, and in the pass that verifies a method.
hold     Compute, then wait until the emulated compute time is over. An overrun is counted and degrades the point.
replay   Wait for the emulated compute time and return the output that the verifying pass recorded. The code path and
         the bytes on the wire are real; only the arithmetic is skipped.

``time_scale`` k multiplies every emulated compute time by k. Links are slower by the same factor, and results are
divided by it.

The emulated compute time is the time of a segment's arithmetic or of its memory traffic, whichever is longer (roofline
model, Williams et al. 2009). So a table lookup takes time although it multiplies nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from testbed.device.replay import ReplayCache
from testbed.device.spec import Device
from testbed.device.traffic import Traffic

T = TypeVar("T")
KINDS = ("compute", "encode", "decode")

# Consecutive segments form one busy period if no message was awaited between them and the gap is shorter than this. The
# gap covers the time to hand over a message where several emulated devices share a core.
ADJACENT_S = 2e-3
# The clock sleeps, then spins for the last part of a segment. A core of a virtual machine takes 0.1 to 0.3 ms to wake
# up, which would add up over the dozens of segments of a pass. With spinning, four devices on 2 cores end segments of
# 5 ms 0.01 to 0.02 ms late; without it, 0.11 to 0.14 ms.
SPIN_S = 150e-6
# A busy period overruns if it ends later than its emulated compute time by more than 0.5 ms plus 5%.
TOLERANCE_S, TOLERANCE_SHARE = 0.5e-3, 0.05


class DeviceClock:
    """Runs the segments of one rank's forward pass in the chosen mode.

    device: the emulated device. After ``finish``: ``seconds`` has the time for each kind of segment, ``macs`` and
    ``moved_bytes`` are sums over segments, ``overruns`` is the number of busy periods that overran their emulated
    compute time, and ``late_s`` is the total lateness of all busy periods in seconds.
    """

    def __init__(self, mode: str = "execute", device: Device | None = None, time_scale: float = 1.0):
        self.mode, self.device, self.time_scale = mode, device or Device(), time_scale
        self._cache = ReplayCache()
        self._recording = False
        self.restart()

    def restart(self, traffic: Traffic | None = None) -> None:
        """Reset the clock before a forward pass.

        traffic: counters of the group that the pass uses. They show whether a message was awaited.
        """
        self._traffic = traffic or Traffic()
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.macs = self.moved_bytes = 0
        self.overruns = 0
        self.late_s = 0.0
        self._cache.rewind()
        self._due = self._ended = self._busy_s = self._blocked_s = 0.0

    def record(self, forward: Callable[[], T]) -> T:
        """Run a forward pass in mode ``execute`` and record its segments' outputs for replay."""
        self._cache, self._recording = ReplayCache(), True
        try:
            return self._cache.record(forward)
        finally:
            self._recording = False

    def run(self, kind: str, macs: int, segment: Callable[[], T], moved_bytes: int = 0) -> T:
        """Run one segment and return its output.

        kind: compute, encode or decode. macs: its multiply-accumulates. moved_bytes: bytes of device memory that it
        reads and writes, for segments that memory traffic limits.

        A segment must not modify tensors that another segment returned, because replay returns the same tensors again.
        A replayed tensor has values only if torch code outside the segments has read them (testbed.device.replay).
        """
        begin = time.monotonic()
        compute_s = self.time_scale * self.device.seconds(macs, moved_bytes)
        if begin - self._ended < ADJACENT_S and self._traffic.blocked_s == self._blocked_s:
            # Due times add up within a busy period, so a sleep that is too long shortens the next one.
            self._due += compute_s
            self._busy_s += compute_s
        else:
            self._close_busy_period()
            self._due, self._busy_s = begin + compute_s, compute_s
        if self.mode == "replay":
            output = self._cache.next()
        else:
            output = self._cache.add(segment) if self._recording else segment()
        if self.mode != "execute":
            _wait_until(self._due)
        self._ended, self._blocked_s = time.monotonic(), self._traffic.blocked_s
        self.macs += macs
        self.moved_bytes += moved_bytes
        self.seconds[kind] += self._ended - begin
        return output

    def finish(self) -> None:
        """Close the last busy period of a pass."""
        self._close_busy_period()
        self._ended = 0.0

    def _close_busy_period(self) -> None:
        late = self._ended - self._due
        if self.mode != "execute":
            self.late_s += max(0.0, late)
            self.overruns += late > TOLERANCE_S + TOLERANCE_SHARE * self._busy_s
        self._due = self._ended


def _wait_until(due_s: float) -> None:
    """Return at this monotonic time."""
    time.sleep(max(0.0, due_s - SPIN_S - time.monotonic()))
    while time.monotonic() < due_s:
        pass
