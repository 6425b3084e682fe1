"""Collectives whose tensors travel in another number format, and the same in one process.

``CodedGroup`` is what methods communicate through: it encodes, moves bytes with the plain ``Group`` and decodes, with
codec and sums in segments of the device's clock. They have no matrix products, so no slot (0 MACs): in replay and hold
they are free, in execute they cost their real time. With fp32, and on one device, the numbers go as they are.

There is no standard for an all-reduce of encoded numbers, so this is ours: each rank encodes the parts of its term and
sends every rank its part (all-to-all), which decodes them and adds up in float32; the sums are encoded and gathered.
So a number passes the codec twice, however many ranks there are, and not at each hop of a ring.

``Relay`` does the same to numbers without any group: simulations of methods are written with it. It takes the messages
that the ranks really sent, because a difference in rounding can move a number by a whole step of a lossy codec, and
checks that each is a right encoding of what it should be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from testbed.comm.codecs import CODECS, Codec
from testbed.comm.group import Group
from testbed.device.clock import DeviceClock

# Beyond a codec's error, as a share of a message's largest number: what rounding elsewhere can make of its input.
ROUNDING = 3e-5


class CodedGroup:
    """One rank's collectives with ``codec``. ``messages``: all that this rank has encoded, in order; none with fp32."""

    def __init__(self, group: Group, clock: DeviceClock, codec: Codec):
        self.group, self.codec, self._clock = group, _used(codec, group.world), clock
        self.rank, self.world = group.rank, group.world
        self.messages: list[Tensor] = []

    def encode(self, x: Tensor) -> Tensor:
        """The message of a tensor, for transfers that are no collective."""
        (message,) = self._encode([x])
        return message

    def decode(self, message: Tensor, shape: Sequence[int]) -> Tensor:
        """The tensor of a message."""
        return self._clock.run("decode", 0, partial(self.codec.decode, message, shape))

    def all_gather(self, local: Tensor, rows: Sequence[int], replicate: bool = False) -> Tensor:
        """Every rank's [rows[r], ...], concatenated; this rank's own part exact.

        replicate: its own part as the others get it, so that all ranks have the same.
        """
        if not self.codec.lossy:
            return self.group.all_gather(local, rows)
        sizes = _message_bytes(self.codec, rows, local.shape[1:])
        messages = self.group.all_gather(self.encode(local), sizes).split(sizes)
        own = None if replicate else local
        return self._clock.run("decode", 0, partial(self._join, messages, rows, local.shape[1:], own))

    def reduce_scatter(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        """The sum over ranks of [sum(rows), ...]; this rank gets its own [rows[rank], ...], its own term exact."""
        if not self.codec.lossy:
            return self.group.reduce_scatter(local, rows)
        received = self._all_to_all(local, rows, [rows[self.rank]] * self.world)
        return self._clock.run("decode", 0, partial(_sum, received))

    def all_reduce(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        """The sum over ranks of [sum(rows), ...], equal on all of them; rank r adds up ``rows[r]`` rows.

        With fp32 the same in two steps of the group; ``Group.all_reduce`` is the ring.
        """
        return self.all_gather(self.reduce_scatter(local, rows), rows, replicate=True)

    def sum_gathered(self, local: Tensor) -> Tensor:
        """The sum over ranks where each gets all terms and adds them up itself; equal on all of them."""
        terms = self.all_gather(local[None], [1] * self.world, replicate=True)
        return self._clock.run("decode", 0, partial(torch.sum, terms, 0))

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """``parts[r]`` goes to rank r; returns what came from each rank r, of ``shapes[r]``; its own part exact."""
        sizes = [0 if peer == self.rank else self.codec.encoded_bytes(part.numel()) for peer, part in enumerate(parts)]
        received = [
            0 if peer == self.rank else self.codec.encoded_bytes(math.prod(shape)) for peer, shape in enumerate(shapes)
        ]
        others = self._encode([part for peer, part in enumerate(parts) if peer != self.rank])
        sent = torch.cat([*others, torch.empty(0, dtype=torch.uint8)])
        messages = self.group.all_to_all(sent, sizes, received).split(received)
        return self._clock.run("decode", 0, partial(self._decode_parts, messages, shapes, parts[self.rank]))

    def _all_to_all(self, local: Tensor, rows: Sequence[int], received_rows: Sequence[int]) -> list[Tensor]:
        shapes = [(count, *local.shape[1:]) for count in received_rows]
        return self.all_to_all(local.split(list(rows)), shapes)

    def _encode(self, parts: Iterable[Tensor]) -> list[Tensor]:
        messages = self._clock.run("encode", 0, lambda: [self.codec.encode(part.contiguous()) for part in parts])
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
        """Everyone's tensors; ``own``, if given, for this rank's."""
        return [
            own if own is not None and peer == self.rank else self.codec.decode(message, shape)
            for peer, (message, shape) in enumerate(zip(messages, shapes, strict=True))
        ]


class Relay:
    """What a CodedGroup does to numbers, for a simulation of all ranks in one process.

    sent: the messages of each rank, as ``CodedGroup.messages``; None encodes here. Each method raises ValueError where
    a message is not an encoding of what that rank would have sent.
    """

    def __init__(self, codec: Codec, world: int, sent: Sequence[Sequence[Tensor]] | None = None):
        self.codec = _used(codec, world)
        self._sent = None if sent is None else [iter(messages) for messages in sent]

    def carry(self, rank: int, x: Tensor) -> Tensor:
        """What the others get of a tensor that ``rank`` sends."""
        if not self.codec.lossy:
            return x
        if self._sent is None:
            return self.codec.decode(self.codec.encode(x.contiguous()), x.shape)
        message = next(self._sent[rank], None)
        if message is None:
            raise ValueError(f"rank {rank} sent fewer messages than the simulation")
        known = self.codec.decode(message, x.shape)
        if x.numel():
            excess = (known - x).abs() - self.codec.error_bound(x)
            if not excess.max() <= ROUNDING * x.abs().max():  # written so that NaN fails
                raise ValueError(
                    f"a message of rank {rank} is {excess.max():.2e} beyond the error of {self.codec.name}"
                )
        return known

    def all_gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Each rank's part as the others get it."""
        return [self.carry(rank, part) for rank, part in enumerate(parts)]

    def all_gather_seen(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """What each rank has after an all-gather: its own part exact, the others' as they arrive."""
        carried = self.all_gather(parts)
        return [torch.cat([*carried[:rank], part, *carried[rank + 1 :]]) for rank, part in enumerate(parts)]

    def all_to_all(self, parts: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """parts[r][p] goes from rank r to p; returns what each rank p has from each r, its own exact."""
        world = range(len(parts))
        arrived = [[parts[r][p] if p == r else self.carry(r, parts[r][p]) for p in world] for r in world]
        return [[arrived[r][p] for r in world] for p in world]

    def reduce_scatter(self, terms: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """Each rank's rows of the sum of all ranks' terms."""
        return [_sum(parts) for parts in self.all_to_all([term.split(list(rows)) for term in terms])]

    def all_reduce(self, terms: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
        """The sum of all ranks' terms, as all of them have it."""
        return torch.cat(self.all_gather(self.reduce_scatter(terms, rows)))


def gathered_bits(codec: Codec, rows: Sequence[int], width: int) -> tuple[int, ...]:
    """Bits that each rank receives in an all-gather of [rows[r], width] numbers of each rank r."""
    sizes = _message_bytes(codec, rows, (width,))
    return tuple(8 * (sum(sizes) - own) for own in sizes)


def scattered_bits(codec: Codec, rows: Sequence[int], width: int) -> tuple[int, ...]:
    """Bits that each rank receives in a reduce-scatter that gives each rank r [rows[r], width] numbers."""
    return tuple(8 * (len(rows) - 1) * own for own in _message_bytes(codec, rows, (width,)))


def _used(codec: Codec, world: int) -> Codec:
    """One device sends nothing, so it loses nothing."""
    return codec if world > 1 else CODECS["fp32"]


def _message_bytes(codec: Codec, rows: Sequence[int], trailing: Sequence[int]) -> list[int]:
    return [codec.encoded_bytes(count * math.prod(trailing)) for count in rows]


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """In rank order, so that the sum does not depend on who computes it."""
    total = torch.zeros_like(parts[0])
    for part in parts:
        total += part
    return total
