"""The work of a segment: the kernels that a device runs one after another, each with its products and memory traffic.

A device profile turns work into time (testbed.device.spec). A kernel is one call that a deep-learning library starts on
the device: a matrix product with its bias, a fused attention, or one pass over memory as a norm or an activation.
Memory traffic counts each operand and the result once, in float32, as if the device kept nothing between kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

FLOAT_BYTES = 4
PRODUCT, ATTENTION, MEMORY = "product", "attention", "memory"


class Kernel(NamedTuple):
    """One kernel.

    kind: PRODUCT, ATTENTION or MEMORY. macs: its multiply-accumulates. rows, inner: rows of a product's result and the
    width over which it sums; 0 for other kinds. moved_bytes: what it reads and writes.
    """

    kind: str
    macs: int = 0
    rows: int = 0
    inner: int = 0
    moved_bytes: int = 0


@dataclass(frozen=True)
class Work:
    """Kernels, each with the number of times that it runs. Work can be added, and multiplied by a number of times."""

    kernels: tuple[tuple[Kernel, int], ...] = ()

    def __add__(self, other: Work) -> Work:
        return Work(self.kernels + other.kernels)

    def __mul__(self, times: int) -> Work:
        return Work(tuple((kernel, times * count) for kernel, count in self.kernels)) if times else NO_WORK

    __rmul__ = __mul__

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of all kernels."""
        return sum(count * kernel.macs for kernel, count in self.kernels)

    @cached_property
    def moved_bytes(self) -> int:
        """Memory traffic of all kernels."""
        return sum(count * kernel.moved_bytes for kernel, count in self.kernels)

    @cached_property
    def launches(self) -> int:
        """Number of kernels."""
        return sum(count for _, count in self.kernels)

    def counts(self) -> Counter[Kernel]:
        """How often each kernel runs, whatever the order."""
        return count_kernels([self])


NO_WORK = Work()


def count_kernels(works: Iterable[Work]) -> Counter[Kernel]:
    """How often each kernel runs in all of these together."""
    counts: Counter[Kernel] = Counter()
    for work in works:
        for kernel, count in work.kernels:
            counts[kernel] += count
    return counts


def total(works: Iterable[Work]) -> Work:
    """The work of all of these together."""
    return Work(tuple(entry for work in works for entry in work.kernels))


def product(rows: int, inner: int, columns: int, batch: int = 1) -> Work:
    """One matrix product [rows, inner] x [inner, columns], with a bias or without; nothing without a row.

    batch: products of different matrices in one kernel, which fill a device as one product of all their rows does.
    """
    macs = batch * rows * inner * columns
    moved_bytes = FLOAT_BYTES * batch * (rows * inner + inner * columns + rows * columns)
    return Work(((Kernel(PRODUCT, macs, batch * rows, inner, moved_bytes), 1),)) if macs else NO_WORK


def attention(queries: int, keys: int, query_width: int, key_width: int) -> Work:
    """Fused attention of queries to keys and values; widths of all heads together. The scores stay on the chip."""
    macs = 2 * queries * keys * query_width
    moved_bytes = FLOAT_BYTES * (2 * queries * query_width + 2 * keys * key_width)
    return Work(((Kernel(ATTENTION, macs, moved_bytes=moved_bytes), 1),)) if macs else NO_WORK


def memory_pass(numbers: int, launches: int = 1) -> Work:
    """Passes over memory that together read and write this many float32 numbers, spread over ``launches`` kernels."""
    return bytes_pass(FLOAT_BYTES * numbers, launches)


def bytes_pass(moved_bytes: int, launches: int = 1) -> Work:
    """Passes over memory that together move this many bytes, spread over ``launches`` kernels."""
    if not moved_bytes:
        return NO_WORK
    each, rest = divmod(moved_bytes, launches)
    kernels = [(Kernel(MEMORY, moved_bytes=each + 1), rest), (Kernel(MEMORY, moved_bytes=each), launches - rest)]
    return Work(tuple((kernel, count) for kernel, count in kernels if count and kernel.moved_bytes))


class Passes(NamedTuple):
    """Passes over memory that handle numbers one by one: bytes that they move for each number, and kernels."""

    bytes_each: int
    launches: int

    def work(self, numbers: int) -> Work:
        """The work for this many numbers."""
        return bytes_pass(self.bytes_each * numbers, self.launches)
