"""Ring self-attention (Li et al., arXiv 2105.13120; Ring Attention, Liu et al., arXiv 2310.01889).

Rows are split as in ``sequence``. Each device's keys and values go round a ring of N - 1 steps; while a device attends
to the block that it has, the next one comes. The blocks' results are merged by log-sum-exp, so softmax stays exact.

With two directions blocks go round both ways at once: half as many steps, of two blocks each. TokenRing also uses both
directions, but sends queries one way and results the other; that scheme is not reproduced. A device has one link here,
so two directions save steps, not transfer time. A lossy codec encodes a block once; it is passed on as it came.

Shape suffixes: S sequence, P own rows, D hidden, E key width, H heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor

from testbed.comm.group import Group
from testbed.comm.wire import Wire
from testbed.compressed_collectives import CodedGroup, gathered_bits
from testbed.device.clock import DeviceClock
from testbed.device.spec import Device
from testbed.errors import ConfigError
from testbed.methods.base import CodedMethod
from testbed.methods.sequence import SequenceParallel, SequenceShard, check_rows, embed_macs
from testbed.models.partial_attention import PartialAttention, attend_part, merge
from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention, Block
from testbed.models.vit import VisionTransformer
from testbed.output import Output


class RingAttention(CodedMethod):
    """Keys and values round a ring, in one direction or both."""

    name: ClassVar[str] = "ring"

    def __init__(self, directions: int = 1, codec: str = "fp32"):
        super().__init__(codec)
        if directions not in (1, 2):
            raise ConfigError("ring.directions", directions, "allowed: 1, 2")
        self.directions = directions

    def _variant(self) -> list[str]:
        return ["both ways"] if self.directions == 2 else []

    @property
    def traffic(self) -> tuple[str, ...]:
        """To the right, or to both sides."""
        return ("both_ways",) if self.directions == 2 else ("ring",)

    def check(self, shape: ModelShape, world: int) -> None:
        """Each device needs a row."""
        check_rows(self.name, shape, world)

    def shard(self, model: VisionTransformer, rank: int, world: int) -> SequenceShard:
        """The whole model and the rank's place."""
        self.check(model.shape, world)
        return SequenceShard(model, self.shares(model.shape.sequence, world), rank)

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: SequenceShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Each rank has its own content tokens, rank 0 the logits."""
        shape, own = shard.model.shape, shard.rows[group.rank]
        coded = CodedGroup(group, clock, self.codec)
        project = shape.query_macs(own) + shape.key_value_macs(own)
        x_PD = clock.run("compute", embed_macs(shape, shard.rows, group.rank), partial(shard.embed, inputs))
        for block in cast(Iterable[Block], shard.model.blocks):
            q_BHPK, kv_PE = clock.run("compute", project, partial(shard.project, block, x_PD))
            parts = []
            for blocks in self._around(coded, kv_PE, shard.rows):
                macs = shape.attend_macs(own, sum(map(len, blocks)))
                parts.append(clock.run("compute", macs, partial(_attend, block.attn, q_BHPK, blocks)))
            x_PD = clock.run("compute", shape.finish_macs(own), partial(_finish, block, x_PD, parts))
        hidden_PD, logits = clock.run("compute", 0 if shard.start else shape.head_macs(), partial(shard.finish, x_PD))
        return Output(hidden_PD, max(shard.start - 1, 0), logits, messages=coded.messages)

    def _around(self, coded: CodedGroup, own_PE: Tensor, rows: list[int]) -> Iterator[list[Tensor]]:
        """First the own block, then those that each step brings; while the caller uses some, the next are coming."""
        blocks, messages = [own_PE], {coded.rank: coded.encode(own_PE)}
        for step in _steps(coded.rank, coded.world, self.directions):
            shapes = [(rows[owner], own_PE.shape[1]) for owner in step.received.values()]
            sizes = [coded.codec.encoded_bytes(math.prod(shape)) for shape in shapes]
            outgoing = {peer: messages[owner] for peer, owner in step.sent.items()}
            coming = coded.group.exchange_async(outgoing, dict(zip(step.received, sizes, strict=True)))
            yield blocks
            received = coming.wait().split(sizes)
            messages = dict(zip(step.received.values(), received, strict=True))
            blocks = [coded.decode(message, shape) for message, shape in zip(received, shapes, strict=True)]
        yield blocks

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Everyone else's keys and values, once per layer."""
        gathered = gathered_bits(self.codec, self.shares(shape.sequence, world), 2 * shape.key_width)
        return tuple(shape.layers * bits for bits in gathered)

    def messages(self, shape: ModelShape, world: int) -> int:
        """Everybody's block per layer, from whichever neighbor."""
        return shape.layers * (world - 1)

    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """Everything for own rows only."""
        rows = self.shares(shape.sequence, world)
        own = rows[rank]
        layer = shape.query_macs(own) + shape.key_value_macs(own) + shape.attend_macs(own, shape.sequence)
        head = 0 if rank else shape.head_macs()
        return embed_macs(shape, rows, rank) + shape.layers * (layer + shape.finish_macs(own)) + head

    def predicted_s(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> float:
        """The cost model: a rank attends to the blocks it has while it passes them on, then needs the next ones."""
        world, rows = len(devices), self.shares(shape.sequence, len(devices))
        block_s = [wire.message_s(self.codec.encoded_bytes(2 * count * shape.key_width)) for count in rows]

        def after(now: list[float], macs: Iterable[int]) -> list[float]:
            return [begin + device.seconds(each) for begin, device, each in zip(now, devices, macs, strict=True)]

        def attended(now: list[float], held: list[int]) -> list[float]:
            return after(now, (shape.attend_macs(own, keys) for own, keys in zip(rows, held, strict=True)))

        now = after([0.0] * world, (embed_macs(shape, rows, rank) for rank in range(world)))
        for _ in range(shape.layers):
            now, held = after(now, (shape.query_macs(own) + shape.key_value_macs(own) for own in rows)), rows
            for moves in zip(*(_steps(rank, world, self.directions) for rank in range(world)), strict=True):
                arrivals = [
                    max(now[rank], *(now[peer] for peer in move.received)) + move.seconds(block_s)
                    for rank, move in enumerate(moves)
                ]
                now = [max(times) for times in zip(attended(now, held), arrivals, strict=True)]
                held = [sum(rows[owner] for owner in move.received.values()) for move in moves]
            now = after(attended(now, held), map(shape.finish_macs, rows))
        now[0] += devices[0].seconds(shape.head_macs())
        return max(now) + self._exchanges_s(shape, world, wire)

    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: the numbers are those of ``sequence`` where keys and values are gathered."""
        sequence = SequenceParallel("kv", self.codec.name)
        sequence.speeds = self.speeds
        return sequence.simulate(model, inputs, world, sent)


@dataclass(frozen=True)
class Step:
    """What one rank does in one step: which rank's block goes to which peer, and comes from which."""

    sent: dict[int, int]
    received: dict[int, int]

    def seconds(self, block_s: Sequence[float]) -> float:
        """How long its blocks take on the rank's link, whose two ways are apart; block_s: of each rank's block."""
        return max(sum(block_s[owner] for owner in way.values()) for way in (self.sent, self.received))


def _steps(rank: int, world: int, directions: int) -> list[Step]:
    """To the right N - 1 steps; with two directions blocks of the nearer half come from each side."""
    right, left = (rank + 1) % world, (rank - 1) % world
    leftward = (world - 1) // 2 if directions == 2 else 0
    steps = []
    for distance in range(1, world - leftward):
        step = Step({right: (rank - distance + 1) % world}, {left: (rank - distance) % world})
        if distance <= leftward:
            step.sent[left] = (rank + distance - 1) % world
            step.received[right] = (rank + distance) % world
        steps.append(step)
    return steps


def _attend(attn: Attention, q_BHPK: Tensor, blocks: list[Tensor]) -> PartialAttention:
    """Attention of own rows to some ranks' keys and values [rows, 2 E]."""
    k_BHRK, v_BHRK = (attn.split_heads(side[None]) for side in torch.cat(blocks).chunk(2, dim=-1))
    return attend_part(q_BHPK, k_BHRK, v_BHRK)


def _finish(block: Block, x_PD: Tensor, parts: list[PartialAttention]) -> Tensor:
    """Own rows [P, D] after the layer."""
    return block.finish(x_PD[None], merge(parts).mixed())[0]
