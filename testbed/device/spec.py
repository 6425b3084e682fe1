"""Speed and memory of the emulated device. It does not import torch, so a configuration is checked quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from testbed.work import ATTENTION, PRODUCT, Kernel, Work

# (size, share of the peak rate) pairs by ascending size: see ``efficiency``.
Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Device:
    """The emulated device. The defaults mean that computation and messages take no time and any model fits.

    macs_per_s: multiply-accumulates per second of large products. memory_bytes_per_s: memory bandwidth. memory_bytes:
    memory size. launch_s: start of one kernel. exchange_s: what both hosts add to a message beyond its time on the
    link, without its copies. staging_bytes_per_s: rate of the copy between device memory and host memory, made once by
    the sender and once by the receiver. row_efficiency, inner_efficiency: the share of ``macs_per_s`` that products
    reach, by rows of the result and by inner width. attention_efficiency: the share that fused attention reaches.
    """

    macs_per_s: float = float("inf")
    memory_bytes_per_s: float = float("inf")
    memory_bytes: float = float("inf")
    launch_s: float = 0.0
    exchange_s: float = 0.0
    staging_bytes_per_s: float = float("inf")
    row_efficiency: Curve = ()
    inner_efficiency: Curve = ()
    attention_efficiency: float = 1.0

    def seconds(self, work: Work) -> float:
        """Emulated compute time of a segment: the sum over its kernels.

        A kernel takes the time of its arithmetic or of its memory traffic, whichever is longer (roofline model,
        Williams et al. 2009), and ``launch_s``.
        """
        return _work_seconds(self, work)

    def message_s(self, payload_bytes: int) -> float:
        """What both hosts add to a message of this size beyond its time on the link."""
        return self.exchange_s + 2 * payload_bytes / self.staging_bytes_per_s

    def kernel_s(self, kernel: Kernel) -> float:
        """Emulated compute time of one kernel."""
        rate = self.macs_per_s
        if kernel.kind == PRODUCT:
            rate *= efficiency(self.row_efficiency, kernel.rows) * efficiency(self.inner_efficiency, kernel.inner)
        elif kernel.kind == ATTENTION:
            rate *= self.attention_efficiency
        return self.launch_s + max(kernel.macs / rate, kernel.moved_bytes / self.memory_bytes_per_s)


@lru_cache(maxsize=1 << 14)
def _work_seconds(device: Device, work: Work) -> float:
    return sum(count * device.kernel_s(kernel) for kernel, count in work.kernels)


@lru_cache(maxsize=256)
def anchored(device: Device, work: Work, seconds: float) -> Device:
    """The device with the ``macs_per_s`` at which ``work`` takes this time.

    Raises ValueError, with the seconds of launches and memory traffic, if these alone take as long.
    """
    floor_s = replace(device, macs_per_s=math.inf).seconds(work)
    if floor_s >= seconds:
        raise ValueError(floor_s)
    low = high = work.macs / seconds  # no product exceeds the peak rate, so the work takes this time or longer
    while replace(device, macs_per_s=high).seconds(work) > seconds:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):  # until no float lies between them
        if replace(device, macs_per_s=middle).seconds(work) > seconds:
            low = middle
        else:
            high = middle
    return replace(device, macs_per_s=high)


def efficiency(curve: Curve, size: float) -> float:
    """The share of the peak rate at a size: linear in log(size) between the points of a curve, 1 without points.

    Above the last point the share stays; below the first one it is proportional to the size, as where a device takes
    as long for fewer rows.
    """
    if not curve:
        return 1.0
    first, last = curve[0], curve[-1]
    if size <= first[0]:
        return first[1] * size / first[0]
    if size >= last[0]:
        return last[1]
    for (low, below), (high, above) in zip(curve, curve[1:], strict=False):
        if size <= high:
            part = math.log(size / low) / math.log(high / low)
            return below + part * (above - below)
    raise AssertionError("unreachable: the last point is above the size")
