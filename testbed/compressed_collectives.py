"""Collectives with a communication codec, and the same computation in one process.

Methods communicate through ``CompressedGroup``. It encodes tensors, moves the messages with the plain ``Group`` and
decodes them. Encoding, decoding and sums are segments of the device's clock, which have no matrix products but memory
traffic. With fp32, and on one device, nothing is encoded. The transport itself then adds the terms of a sum, and a
segment without arithmetic takes the time that the device would need for it.

There is no standard algorithm for an all-reduce of compressed tensors. Here, each rank encodes the parts of its term
and sends each part to one rank (all-to-all). That rank decodes the parts and sums them in float32. The sums are encoded
and gathered. A number is therefore encoded twice for any number of ranks, instead of once at each hop of a ring.

``Relay`` applies the same codec steps without a group, for one-process simulations of methods. It uses the messages
that the ranks sent, because a rounding difference can move a number by a whole step of a lossy codec. It checks that
each message is a valid encoding of the simulated tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from testbed.comm.codecs import CODECS, Codec
from testbed.comm.group import Group
from testbed.device.clock import DeviceClock
from testbed.work import NO_WORK, Work, memory_pass, total

# Tolerance beyond a codec's error bound, as a share of a message's largest number: rounding differences of its input.
ROUNDING = 3e-5


class CompressedGroup:
    """One rank's collectives with ``codec``. ``messages``: all messages of this rank, in order; none with fp32."""

    def __init__(self, group: Group, clock: DeviceClock, codec: Codec):
        self.group, self.codec, self._clock = group, _used(codec, group.world), clock
        self.rank, self.world = group.rank, group.world
        self.messages: list[Tensor] = []

    def encode(self, x: Tensor) -> Tensor:
        """The message of a tensor, for point-to-point transfers."""
        (message,) = self._encode([x])
        return message

    def ring_all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, equal on all ranks, by the ring algorithm. For fp32 only."""
        return self._clock.run(
            "decode", ring_sum_work(x.numel(), self.world), partial(summed_by_transport, self.group.all_reduce(x))
        )

    def decode(self, message: Tensor, shape: Sequence[int]) -> Tensor:
        """The tensor of this shape that a message encodes."""
        work = self.codec.decoding.work(math.prod(shape))
        return self._clock.run("decode", work, partial(self.codec.decode, message, shape))

    def all_gather(self, local: Tensor, rows: Sequence[int], replicate: bool = False) -> Tensor:
        """Every rank's [rows[r], ...], concatenated. This rank's own part is exact.

        replicate: decode the own part too, so that all ranks have equal results.
        """
        if not self.codec.lossy:
            return self.group.all_gather(local, rows)
        sizes = _message_bytes(self.codec, rows, local.shape[1:])
        messages = self.group.all_gather(self.encode(local), sizes).split(sizes)
        own, width = None if replicate else local, math.prod(local.shape[1:])
        work = join_work(self.codec, [count * width for count in rows], self.rank, replicate)
        return self._clock.run("decode", work, partial(self._join, messages, rows, local.shape[1:], own))

    def reduce_scatter(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        """Sum of [sum(rows), ...] over ranks. This rank gets its own [rows[rank], ...]; its own term is exact."""
        add = sum_work(rows[self.rank] * math.prod(local.shape[1:]), self.world)
        if not self.codec.lossy:
            return self._clock.run("decode", add, partial(summed_by_transport, self.group.reduce_scatter(local, rows)))
        received = self._all_to_all(local, rows, [rows[self.rank]] * self.world)
        return self._clock.run("decode", add, partial(_sum, received))

    def all_reduce(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        """Sum of [sum(rows), ...] over ranks, equal on all ranks. Rank r sums ``rows[r]`` rows.

        fp32 uses the same two steps. ``Group.all_reduce`` is the ring algorithm.
        """
        return self.all_gather(self.reduce_scatter(local, rows), rows, replicate=True)

    def sum_gathered(self, local: Tensor) -> Tensor:
        """Sum over ranks, equal on all ranks. Each rank gathers all terms and sums them itself."""
        terms = self.all_gather(local[None], [1] * self.world, replicate=True)
        return self._clock.run("decode", sum_work(local.numel(), self.world), partial(_sum, list(terms)))

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Send ``parts[r]`` to each rank r. Returns the ``shapes[r]`` from each rank r; the own part is exact."""
        sizes = [0 if peer == self.rank else self.codec.encoded_bytes(part.numel()) for peer, part in enumerate(parts)]
        received = [
            0 if peer == self.rank else self.codec.encoded_bytes(math.prod(shape)) for peer, shape in enumerate(shapes)
        ]
        others = self._encode([part for peer, part in enumerate(parts) if peer != self.rank])
        sent = torch.cat([*others, parts[self.rank].new_empty(0, dtype=torch.uint8)])
        messages = self.group.all_to_all(sent, sizes, received).split(received)
        work = total(
            self.codec.decoding.work(math.prod(shape)) for peer, shape in enumerate(shapes) if peer != self.rank
        )
        return self._clock.run("decode", work, partial(self._decode_parts, messages, shapes, parts[self.rank]))

    def _all_to_all(self, local: Tensor, rows: Sequence[int], received_rows: Sequence[int]) -> list[Tensor]:
        shapes = [(count, *local.shape[1:]) for count in received_rows]
        return self.all_to_all(local.split(list(rows)), shapes)

    def _encode(self, parts: Sequence[Tensor]) -> list[Tensor]:
        work = total(self.codec.encoding.work(part.numel()) for part in parts)
        messages = self._clock.run("encode", work, lambda: [self.codec.encode(part.contiguous()) for part in parts])
        if self.codec.lossy:
            self.messages += messages
        return messages

    def _join(
        self, messages: Sequence[Tensor], rows: Sequence[int], trailing: Sequence[int], own: Tensor | None
    ) -> Tensor:
        shapes = [(count, *trailing) for count in rows]
        return torch.cat(self._decode_parts(messages, shapes, own))

    def _decode_parts(
        self, messages: Sequence[Tensor], shapes: Sequence[Sequence[int]], own: Tensor | None
    ) -> list[Tensor]:
        """All ranks' tensors. ``own`` replaces this rank's, if given."""
        return [
            own if own is not None and peer == self.rank else self.codec.decode(message, shape)
            for peer, (message, shape) in enumerate(zip(messages, shapes, strict=True))
        ]


class Relay:
    """The codec steps of CompressedGroup, for a simulation of all ranks in one process.

    sent: the messages of each rank (``CompressedGroup.messages``), or None to encode here. Each method raises
    ValueError if a message is not a valid encoding of the simulated tensor.
    """

    def __init__(self, codec: Codec, world: int, sent: Sequence[Sequence[Tensor]] | None = None):
        self.codec = _used(codec, world)
        self._sent = None if sent is None else [iter(messages) for messages in sent]

    def carry(self, rank: int, x: Tensor) -> Tensor:
        """A tensor from ``rank`` as the other ranks receive it."""
        if not self.codec.lossy:
            return x
        if self._sent is None:
            return self.codec.decode(self.codec.encode(x.contiguous()), x.shape)
        message = next(self._sent[rank], None)
        if message is None:
            raise ValueError(f"rank {rank} sent fewer messages than the simulation")
        known = self.codec.decode(message, x.shape).to(x.dtype)  # a reference may compute in float64
        if x.numel():
            excess = (known - x).abs() - self.codec.error_bound(x)
            if not excess.max() <= ROUNDING * x.abs().max():  # written so that NaN fails
                raise ValueError(
                    f"a message of rank {rank} is {excess.max():.2e} beyond the error of {self.codec.name}"
                )
        return known

    def all_gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Each rank's part as the other ranks receive it."""
        return [self.carry(rank, part) for rank, part in enumerate(parts)]

    def all_gather_seen(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The all-gather result of each rank: its own part exact, the other parts as received."""
        carried = self.all_gather(parts)
        return [torch.cat([*carried[:rank], part, *carried[rank + 1 :]]) for rank, part in enumerate(parts)]

    def all_to_all(self, parts: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """Send parts[r][p] from rank r to rank p. Returns what each rank p has from each r; its own is exact."""
        world = range(len(parts))
        arrived = [[parts[r][p] if p == r else self.carry(r, parts[r][p]) for p in world] for r in world]
        return [[arrived[r][p] for r in world] for p in world]

    def reduce_scatter(self, terms: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """Each rank's rows of the sum over all ranks' terms."""
        return [_sum(parts) for parts in self.all_to_all([term.split(list(rows)) for term in terms])]

    def all_reduce(self, terms: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
        """The sum over all ranks' terms, which is equal on all ranks."""
        return torch.cat(self.all_gather(self.reduce_scatter(terms, rows)))


def gather_work(codec: Codec, rows: Sequence[int], width: int, rank: int, replicate: bool = False) -> Work:
    """What ``CompressedGroup.all_gather`` of [rows[r], width] numbers from each rank r costs one rank."""
    if not _used(codec, len(rows)).lossy:
        return NO_WORK
    numbers = [count * width for count in rows]
    return codec.encoding.work(numbers[rank]) + join_work(codec, numbers, rank, replicate)


def scatter_work(codec: Codec, rows: Sequence[int], width: int, rank: int) -> Work:
    """What ``CompressedGroup.reduce_scatter``, which gives each rank r [rows[r], width] numbers, costs one rank."""
    numbers = [count * width for count in rows]
    return exchange_work(codec, numbers, [numbers[rank]] * len(rows), rank) + sum_work(numbers[rank], len(rows))


def exchange_work(codec: Codec, sent: Sequence[int], received: Sequence[int], rank: int) -> Work:
    """What ``CompressedGroup.all_to_all`` costs one rank. sent, received: numbers to and from each rank."""
    codec, others = _used(codec, len(sent)), [peer for peer in range(len(sent)) if peer != rank]
    encoded = total(codec.encoding.work(sent[peer]) for peer in others)
    return encoded + total(codec.decoding.work(received[peer]) for peer in others)


def join_work(codec: Codec, numbers: Sequence[int], rank: int, replicate: bool) -> Work:
    """Decode the messages of all ranks, ``numbers[r]`` from rank r, and join them; the own one if ``replicate``."""
    decoded = [count for peer, count in enumerate(numbers) if replicate or peer != rank]
    return total(map(codec.decoding.work, decoded)) + memory_pass(2 * sum(numbers))


def sum_work(numbers: int, terms: int) -> Work:
    """Add ``terms`` tensors of ``numbers`` numbers."""
    return memory_pass(3 * (terms - 1) * numbers, terms - 1) if terms > 1 else NO_WORK


def ring_sum_work(numbers: int, world: int) -> Work:
    """What a rank adds in a ring all-reduce of ``numbers`` numbers: one part at each of N - 1 steps."""
    return sum_work(-(-numbers // world), world)


def gathered_bits(codec: Codec, rows: Sequence[int], width: int) -> tuple[int, ...]:
    """Bits that each rank receives in an all-gather of [rows[r], width] numbers from each rank r."""
    sizes = _message_bytes(codec, rows, (width,))
    return tuple(8 * (sum(sizes) - own) for own in sizes)


def scattered_bits(codec: Codec, rows: Sequence[int], width: int) -> tuple[int, ...]:
    """Bits that each rank receives in a reduce-scatter that gives each rank r [rows[r], width] numbers."""
    return tuple(8 * (len(rows) - 1) * own for own in _message_bytes(codec, rows, (width,)))


def _used(codec: Codec, world: int) -> Codec:
    """The codec in use: a single device sends nothing, so it needs none."""
    return codec if world > 1 else CODECS["fp32"]


def _message_bytes(codec: Codec, rows: Sequence[int], trailing: Sequence[int]) -> list[int]:
    return [codec.encoded_bytes(count * math.prod(trailing)) for count in rows]


def summed_by_transport(x: Tensor) -> Tensor:
    """A tensor that the transport has already summed."""
    return x


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """In rank order, so that the sum does not depend on who computes it. N - 1 additions, as ``sum_work`` counts."""
    first, *others = parts
    if not others:
        return first
    total = first + others[0]
    for part in others[1:]:
        total += part
    return total
