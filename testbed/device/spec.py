"""The emulated device: how fast it is and how much fits into it. Knows no torch: a configuration is checked with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Speed and size of the emulated device: multiply-accumulates and bytes of its memory per second, and bytes of it.

    Without arguments it takes no time, and anything fits.
    """

    macs_per_s: float = float("inf")
    memory_bytes_per_s: float = float("inf")
    memory_bytes: float = float("inf")

    def seconds(self, macs: int, moved_bytes: int = 0) -> float:
        """The slot of a segment that multiplies so often and reads and writes so many bytes."""
        return max(macs / self.macs_per_s, moved_bytes / self.memory_bytes_per_s)
