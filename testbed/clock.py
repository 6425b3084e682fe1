"""The device's clock: how long a segment of computation takes on the device that is emulated.

Two cores cannot compute for eight devices at once, so computation runs in slots of the emulated device's time:

execute  as fast as this machine goes (real hardware, and the pass that verifies a method);
hold     compute, then wait out the slot that the device profile gives; an overrun is recorded and spoils the point;
replay   wait out the slot and return the output that the verifying pass recorded: the code path and the bytes on the
         wire are the real ones, only the arithmetic is skipped.

``time_scale`` k stretches every slot by k (links are slowed by k elsewhere; results are divided by k).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
KINDS = ("compute", "encode", "decode")

# Segments with less than this between them are one stretch of computation: no message was awaited in between.
ADJACENT_S = 100e-6
# A stretch that ends later than this beyond its slots has overrun; waking up from sleep alone takes up to 0.1 ms.
TOLERANCE_S, TOLERANCE_SHARE = 0.5e-3, 0.05


class DeviceClock:
    """Runs segments of one rank's forward pass in the chosen mode.

    macs_per_s: speed of the emulated device. After ``finish``, ``seconds`` holds the time per kind of segment, ``macs``
    their sum, ``overruns`` the number of stretches of computation that ended clearly later than their slots, and
    ``late_s`` by how much all of them together did.
    """

    def __init__(self, mode: str = "execute", macs_per_s: float = float("inf"), time_scale: float = 1.0):
        self.mode, self.macs_per_s, self.time_scale = mode, macs_per_s, time_scale
        self._tape: list[Any] = []
        self.restart()

    def restart(self) -> None:
        """Before each forward pass. A pass in ``execute`` records its outputs for later replay."""
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.macs = 0
        self.overruns = 0
        self.late_s = 0.0
        self._position = 0
        self._due = self._ended = self._stretch = 0.0
        if self.mode == "execute":
            self._tape.clear()

    def run(self, kind: str, macs: int, segment: Callable[[], T]) -> T:
        """Run one segment of ``macs`` multiply-accumulates; ``kind`` is compute, encode or decode.

        The segment must not change tensors that another segment returned: replay hands the same ones out again.
        """
        begin = time.monotonic()
        slot = self.time_scale * macs / self.macs_per_s
        if begin - self._ended < ADJACENT_S:
            # Lateness is made up for within a stretch: a sleep that overshoots must not lengthen the next slot.
            self._due += slot
            self._stretch += slot
        else:
            self._close_stretch()
            self._due, self._stretch = begin + slot, slot
        if self.mode == "replay":
            output = self._tape[self._position]
            self._position += 1
        else:
            output = segment()
            if self.mode == "execute":
                self._tape.append(output)
        if self.mode != "execute":
            time.sleep(max(0.0, self._due - time.monotonic()))
        self._ended = time.monotonic()
        self.macs += macs
        self.seconds[kind] += self._ended - begin
        return output

    def finish(self) -> None:
        """After the last segment of a pass."""
        self._close_stretch()
        self._ended = 0.0

    def _close_stretch(self) -> None:
        late = self._ended - self._due
        if self.mode != "execute":
            self.late_s += max(0.0, late)
            self.overruns += late > TOLERANCE_S + TOLERANCE_SHARE * self._stretch
        self._due = self._ended
