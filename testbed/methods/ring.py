"""Ring attention (Li et al., arXiv 2105.13120; Liu et al., arXiv 2310.01889; docs/baselines.md, section 3.6).

Rows are split as in ``sequence``. The blocks of keys and values, one of each device, travel around a ring in N - 1
steps. A device attends to the block that it has while the next one arrives. The results of all blocks are merged by
log-sum-exp, so attention stays exact.

``ring.directions=2`` sends blocks both ways: half as many steps, with two blocks in each. A device has one link here,
so this saves steps and no transfer time. TokenRing (arXiv 2412.20501) also uses both directions, but sends queries one
way and partial results the other; that scheme is not reproduced. A lossy codec encodes a block once, and the encoded
block is passed on.

Shape suffixes: S sequence, P own rows, R rows of a block, D hidden, E key width, H heads, K head width.
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
from testbed.compressed_collectives import CompressedGroup, Relay, exchange_work
from testbed.device.clock import DeviceClock
from testbed.device.spec import Device
from testbed.errors import ConfigError
from testbed.methods.row_parallel import RowParallel, RowShard, embed_work, head_work, project_work
from testbed.methods.sequence import simulate_sequence
from testbed.models.partial_attention import PartialAttention, attend_part, merge
from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention, Block
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import NO_WORK, Work, memory_pass, total


class RingAttention(RowParallel):
    """Keys and values travel around a ring. directions: 1, or 2 for both ways at the same time."""

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
        """To the right neighbor, or to both neighbors."""
        return ("both_ways",) if self.directions == 2 else ("ring",)

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: RowShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Each rank has its own content tokens, rank 0 the logits."""
        shape, own = shard.model.shape, shard.rows[group.rank]
        compressed = CompressedGroup(group, clock, self.codec)
        steps = _steps(group.rank, group.world, self.directions)
        work = _segment_work(shape, own, 1 + len(steps))
        x_PD = shard.run_embed(clock, inputs)
        for block in cast(Iterable[Block], shard.model.blocks):
            q_BHPK, kv_PE = clock.run("compute", work.project, partial(shard.project, block, x_PD))
            parts = []
            for held in self._travel(compressed, kv_PE, shard.rows):
                attend = _attend_work(shape, own, [len(kv_RE) for kv_RE in held])
                parts.append(clock.run("compute", attend, partial(_attend, block.attn, q_BHPK, held)))
            x_PD = clock.run("compute", work.finish, partial(_finish, block, x_PD, parts))
        return shard.run_head(clock, x_PD, compressed.messages)

    def _travel(self, compressed: CompressedGroup, own_PE: Tensor, rows: list[int]) -> Iterator[list[Tensor]]:
        """The own block, then the blocks of each step. The next step's blocks arrive while the caller computes."""
        held, messages = [own_PE], {compressed.rank: compressed.encode(own_PE)}
        for step in _steps(compressed.rank, compressed.world, self.directions):
            shapes = [(rows[owner], own_PE.shape[1]) for owner in step.received.values()]
            sizes = [compressed.codec.encoded_bytes(math.prod(shape)) for shape in shapes]
            outgoing = {peer: messages[owner] for peer, owner in step.sent.items()}
            incoming = compressed.group.exchange_async(outgoing, dict(zip(step.received, sizes, strict=True)))
            yield held
            received = incoming.wait().split(sizes)
            messages = dict(zip(step.received.values(), received, strict=True))
            held = [compressed.decode(message, shape) for message, shape in zip(received, shapes, strict=True)]
        yield held

    def gathered(self, shape: ModelShape, world: int) -> tuple[list[int], int]:
        """Keys and values of own rows; neighbors pass them on to the other ranks."""
        return self.rows(shape, world), 2 * shape.key_width

    def rounds(self, shape: ModelShape, world: int, wire: Wire) -> int:
        """The steps of the ring in each layer."""
        return shape.layers * len(_steps(0, world, self.directions))

    def layer_work(self, shape: ModelShape, rows: Sequence[int], rank: int) -> Work:
        """Everything for own rows only: attention to one block after another, merged."""
        steps = _steps(rank, len(rows), self.directions)
        held = [[rows[rank]], *([rows[owner] for owner in step.received.values()] for step in steps)]
        work = _segment_work(shape, rows[rank], len(held))
        return work.project + total(_attend_work(shape, rows[rank], keys) for keys in held) + work.finish

    def codec_work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """The own block is encoded once; each received block is decoded."""
        blocks = [2 * count * shape.key_width for count in self.rows(shape, world)]
        return exchange_work(self.codec, [0] * world, blocks, rank) + self._encode_work(blocks[rank], world)

    def _encode_work(self, numbers: int, world: int) -> Work:
        return self.codec.encoding.work(numbers) if world > 1 else NO_WORK

    def predicted_s(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> float:
        """The cost model: a rank attends to the blocks that it has and passes them on, then needs the next ones."""
        world, rows = len(devices), self.rows(shape, len(devices))
        numbers = [2 * count * shape.key_width for count in rows]
        block_s = [wire.message_s(self.codec.encoded_bytes(count)) for count in numbers]
        steps_of = [_steps(rank, world, self.directions) for rank in range(world)]
        work = [_segment_work(shape, own, 1 + len(steps)) for own, steps in zip(rows, steps_of, strict=True)]

        def after(now_s: Sequence[float], works: Iterable[Work]) -> list[float]:
            return [start_s + device.seconds(each) for start_s, device, each in zip(now_s, devices, works, strict=True)]

        def attended(now_s: list[float], keys: list[list[int]]) -> list[float]:
            return after(now_s, (_attend_work(shape, own, held) for own, held in zip(rows, keys, strict=True)))

        now_s = after([0.0] * world, (embed_work(shape, rows, rank) for rank in range(world)))
        for _ in range(shape.layers):
            now_s, keys = after(now_s, (each.project for each in work)), [[own] for own in rows]
            now_s = after(now_s, (self._encode_work(count, world) for count in numbers))
            for steps in zip(*steps_of, strict=True):
                arrival_s = [
                    max(now_s[rank], *(now_s[peer] for peer in step.received)) + step.seconds(block_s) + wire.exchange_s
                    for rank, step in enumerate(steps)
                ]
                now_s = [max(times) for times in zip(attended(now_s, keys), arrival_s, strict=True)]
                received = [[*step.received.values()] for step in steps]
                decode = (total(self.codec.decoding.work(numbers[o]) for o in owners) for owners in received)
                now_s, keys = after(now_s, decode), [[rows[owner] for owner in owners] for owners in received]
            now_s = after(attended(now_s, keys), (each.finish for each in work))
        return max(after(now_s, (head_work(shape, rows, rank) for rank in range(world))))

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: the numbers are those of ``sequence`` with ``gather=kv``."""
        rows, relay = self.rows(model.shape, world), Relay(self.codec, world, sent)
        return simulate_sequence(model, inputs, rows, relay, "kv")


@dataclass(frozen=True)
class SegmentWork:
    """Work of one rank in the segments of a layer around its attention."""

    project: Work
    finish: Work


def _segment_work(shape: ModelShape, own: int, parts: int) -> SegmentWork:
    """parts: in which attention runs, and which are merged."""
    return SegmentWork(
        project=project_work(shape, own),
        finish=shape.merge(own, parts) + shape.finish(own),
    )


def _attend_work(shape: ModelShape, own: int, held: Sequence[int]) -> Work:
    """What ``_attend`` costs. held: rows of each block; several are joined before."""
    keys = sum(held)
    join = memory_pass(4 * keys * shape.key_width) if len(held) > 1 else NO_WORK
    return join + shape.attend(own, keys)


@dataclass(frozen=True)
class Step:
    """One step of one rank. sent: peer -> the rank whose block goes there. received: peer -> whose block comes."""

    sent: dict[int, int]
    received: dict[int, int]

    def seconds(self, block_s: Sequence[float]) -> float:
        """Time of the blocks on the rank's full-duplex link. block_s: transfer time of each rank's block."""
        return max(sum(block_s[owner] for owner in blocks.values()) for blocks in (self.sent, self.received))


def _steps(rank: int, world: int, directions: int) -> list[Step]:
    """N - 1 steps to the right. With two directions, the blocks of the nearer ranks come from each side."""
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
    """Attention of own rows to blocks of keys and values, each [R, 2 E]."""
    kv_RE = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    k_BHRK, v_BHRK = (attn.split_heads(side[None]) for side in kv_RE.chunk(2, dim=-1))
    return attend_part(q_BHPK, k_BHRK, v_BHRK)


def _finish(block: Block, x_PD: Tensor, parts: list[PartialAttention]) -> Tensor:
    """Own rows [P, D] after the layer."""
    return block.finish(x_PD[None], merge(parts).mixed())[0]
