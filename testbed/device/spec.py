"""Speed and memory of the emulated device. It does not import torch, so a configuration is checked quickly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """The emulated device. The defaults mean that computation takes no time and any model fits.

    macs_per_s: multiply-accumulates per second. memory_bytes_per_s: memory bandwidth. memory_bytes: memory size.
    """

    macs_per_s: float = float("inf")
    memory_bytes_per_s: float = float("inf")
    memory_bytes: float = float("inf")

    def seconds(self, macs: int, moved_bytes: int = 0) -> float:
        """Emulated compute time of a segment with these multiply-accumulates and bytes of memory traffic."""
        return max(macs / self.macs_per_s, moved_bytes / self.memory_bytes_per_s)
