"""The device's clock: how long a segment of computation takes on the device that is emulated.

Two cores cannot compute for eight devices at once, so computation runs in slots of the emulated device's time:

execute  as fast as this machine goes (real hardware, and the pass that verifies a method);
hold     compute, then wait out the slot that the device profile gives; an overrun is counted and spoils the point;
replay   wait out the slot and return the output that the verifying pass recorded: the code path and the bytes on the
         wire are the real ones, only the arithmetic is skipped.

``time_scale`` k stretches every slot by k (links are slowed by k elsewhere; results are divided by k).

A slot is what the profile's arithmetic or its memory needs, whichever is more (the roofline of Williams et al. 2009):
looking up rows of a table multiplies nothing, but it is not free.
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

# Segments between which no message was awaited are one stretch of computation, with at most this between them. It is
# what handing a message over takes this machine, where several emulated devices share a core.
ADJACENT_S = 2e-3
# A virtual machine's core takes 0.1 to 0.3 ms to wake up, which a pass of dozens of slots would add up: the last of a
# slot is awaited awake. On 2 cores four devices then end slots of 5 ms 0.01 to 0.02 ms late, where it was 0.11 to 0.14.
AWAKE_S = 150e-6
# A stretch that ends later than this beyond its slots has overrun.
TOLERANCE_S, TOLERANCE_SHARE = 0.5e-3, 0.05


class DeviceClock:
    """Runs segments of one rank's forward pass in the chosen mode.

    device: the emulated one. After ``finish``, ``seconds`` holds the time per kind of segment, ``macs`` and
    ``moved_bytes`` the segments' sums, ``overruns`` the number of stretches of computation that ended clearly later
    than their slots, and ``late_s`` by how much all of them together did.
    """

    def __init__(self, mode: str = "execute", device: Device | None = None, time_scale: float = 1.0):
        self.mode, self.device, self.time_scale = mode, device or Device(), time_scale
        self._cache = ReplayCache()
        self._recording = False
        self.restart()

    def restart(self, traffic: Traffic | None = None) -> None:
        """Before each forward pass.

        traffic: of the group that the pass uses; it tells whether a message was awaited.
        """
        self._traffic = traffic or Traffic()
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.macs = self.moved_bytes = 0
        self.overruns = 0
        self.late_s = 0.0
        self._cache.rewind()
        self._due = self._ended = self._busy_s = self._blocked_s = 0.0

    def record(self, forward: Callable[[], T]) -> T:
        """Run a forward pass in ``execute`` and record its segments' outputs for later replay."""
        self._cache, self._recording = ReplayCache(), True
        try:
            return self._cache.record(forward)
        finally:
            self._recording = False

    def run(self, kind: str, macs: int, segment: Callable[[], T], moved_bytes: int = 0) -> T:
        """Run one segment of ``macs`` multiply-accumulates; ``kind`` is compute, encode or decode.

        moved_bytes: of the device's memory, where they and not products take the time.

        The segment must not change tensors that another segment returned: replay hands the same ones out again, with
        their values if an operation of torch beyond the segments has read them (see testbed.device.replay).
        """
        begin = time.monotonic()
        slot = self.time_scale * self.device.seconds(macs, moved_bytes)
        if begin - self._ended < ADJACENT_S and self._traffic.blocked_s == self._blocked_s:
            # Lateness is made up for within a stretch: a sleep that overshoots must not lengthen the next slot.
            self._due += slot
            self._busy_s += slot
        else:
            self._close_busy_period()
            self._due, self._busy_s = begin + slot, slot
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
        """After the last segment of a pass."""
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
    time.sleep(max(0.0, due_s - AWAKE_S - time.monotonic()))
    while time.monotonic() < due_s:
        pass
