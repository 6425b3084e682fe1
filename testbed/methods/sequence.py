"""Sequence parallelism as in Voltage (docs/baselines.md, section 3.5: one all-gather per layer).

Each device has all weights and its own rows of the sequence; queries come from these, keys and values from all rows.
What is gathered before a layer's attention is a choice: ``x``, the rows themselves, of which each device computes all
keys and values again, as Voltage does; or ``kv``, each device's keys and values, twice the numbers and no repetition.

Voltage's order of products: a device of few rows does not compute all keys and values. Scores are
((h_own W_Q) W_K') h_all', and the weighted sum of h_all is multiplied by W_V. A key's bias adds the same to all scores
of a query, so softmax does not see it; weights sum up to 1, so the value's bias is added once.

Shape suffixes: S sequence, P own rows, D hidden, E key width, H heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from testbed.comm.group import Group
from testbed.compressed_collectives import CodedGroup, Relay, gathered_bits, scattered_bits
from testbed.device.clock import DeviceClock
from testbed.errors import ConfigError
from testbed.methods.base import CodedMethod
from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention, Block
from testbed.models.vit import VisionTransformer
from testbed.output import Output

GATHERED = ("x", "kv")


@dataclass(frozen=True)
class SequenceShard:
    """The whole model, and which rows (the class token is row 0) belong to this rank."""

    model: VisionTransformer
    rows: list[int]  # of every rank
    rank: int

    @property
    def start(self) -> int:
        """The first own row."""
        return sum(self.rows[: self.rank])

    @property
    def stop(self) -> int:
        """The first row after the own ones."""
        return self.start + self.rows[self.rank]

    def embed(self, inputs: Tensor) -> Tensor:
        """This rank's rows [P, D]."""
        return self.model.embed(inputs, self.start, self.stop)[0]

    def layer(self, block: Block, reorder: bool, all_SD: Tensor) -> Tensor:
        """This rank's rows [P, D] after one layer, from everyone's rows before it."""
        h_BSD = block.norm1(all_SD[None])
        own_BPD = h_BSD[:, self.start : self.stop]
        if reorder:
            mixed_BPD = _mix_embeddings(block.attn, own_BPD, h_BSD)
        else:
            mixed_BPD = block.attn.mix(block.attn.query(own_BPD), *block.attn.keys_values(h_BSD))
        return block.finish(all_SD[None, self.start : self.stop], mixed_BPD)[0]

    def project(self, block: Block, x_PD: Tensor) -> tuple[Tensor, Tensor]:
        """(queries [1, H, P, K], keys and values side by side [P, 2 E]) of own rows."""
        h_BPD = block.norm1(x_PD[None])
        return block.attn.query(h_BPD), torch.cat([block.attn.k(h_BPD), block.attn.v(h_BPD)], dim=-1)[0]

    def attend(self, block: Block, x_PD: Tensor, q_BHPK: Tensor, kv_SE: Tensor) -> Tensor:
        """Own rows [P, D] after the layer, from everyone's keys and values."""
        k_BHSK, v_BHSK = (block.attn.split_heads(part[None]) for part in kv_SE.chunk(2, dim=-1))
        return block.finish(x_PD[None], block.attn.mix(q_BHPK, k_BHSK, v_BHSK))[0]

    def finish(self, x_PD: Tensor) -> tuple[Tensor, Tensor | None]:
        """(normalized content rows, logits where the class token is)."""
        x_PD = self.model.norm(x_PD)
        return (x_PD, None) if self.start else (x_PD[1:], self.model.classify(x_PD[:1])[0])


class SequenceParallel(CodedMethod):
    """Rows split; one all-gather per layer, of ``gather``: x or kv."""

    name: ClassVar[str] = "sequence"

    def __init__(self, gather: str = "x", codec: str = "fp32"):
        super().__init__(codec)
        if gather not in GATHERED:
            raise ConfigError("sequence.gather", gather, f"allowed: {', '.join(GATHERED)}")
        self.gather = gather

    def _variant(self) -> list[str]:
        return ["kv"] if self.gather == "kv" else []

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
        shape, coded = shard.model.shape, CodedGroup(group, clock, self.codec)
        macs = segment_macs(shape, shard.rows, group.rank)
        reorder = reorders(shape, shard.rows[group.rank])
        x_PD = clock.run("compute", macs.embed, partial(shard.embed, inputs))
        for block in cast(Iterable[Block], shard.model.blocks):
            if self.gather == "x":
                all_SD = coded.all_gather(x_PD, shard.rows)
                x_PD = clock.run("compute", macs.layer, partial(shard.layer, block, reorder, all_SD))
            else:
                q_BHPK, kv_PE = clock.run("compute", macs.project, partial(shard.project, block, x_PD))
                kv_SE = coded.all_gather(kv_PE, shard.rows)
                x_PD = clock.run("compute", macs.attend, partial(shard.attend, block, x_PD, q_BHPK, kv_SE))
        hidden_PD, logits = clock.run("compute", macs.head, partial(shard.finish, x_PD))
        return Output(hidden_PD, max(shard.start - 1, 0), logits, messages=coded.messages)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """All rows but the rank's own, or their keys and values, once per layer."""
        gathered = gathered_bits(self.codec, self.shares(shape.sequence, world), self._width(shape))
        return tuple(shape.layers * bits for bits in gathered)

    def messages(self, shape: ModelShape, world: int) -> int:
        """One from everybody per layer."""
        return shape.layers * (world - 1)

    def wire_bits(self, shape: ModelShape, world: int) -> int:
        """The rank with the most rows sends them to all others, which is more than any receives."""
        return shape.layers * max(scattered_bits(self.codec, self.shares(shape.sequence, world), self._width(shape)))

    def _width(self, shape: ModelShape) -> int:
        """Numbers of a row that are sent."""
        return shape.hidden if self.gather == "x" else 2 * shape.key_width

    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """Per layer: keys and values of all rows (``x``) or own ones (``kv``), the rest of the rank's own."""
        macs = segment_macs(shape, self.shares(shape.sequence, world), rank)
        layer = macs.layer if self.gather == "x" else macs.project + macs.attend
        return macs.embed + shape.layers * layer + macs.head

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: full attention for each rank, with what the others get of rows, or keys and values."""
        relay = Relay(self.codec, world, sent)
        rows = self.shares(model.shape.sequence, world)
        parts = list(model.embed(inputs)[0].split(rows))
        for block in cast(Iterable[Block], model.blocks):
            parts = simulate_layer(block, parts, relay, self.gather)
        x_SD = model.norm(torch.cat(parts))
        return x_SD[1:], model.classify(x_SD[:1])[0]


@dataclass(frozen=True)
class SegmentMacs:
    """One rank's multiply-accumulates by segment: a layer in one, or in two with keys and values sent between."""

    embed: int
    layer: int
    project: int
    attend: int
    head: int


def simulate_layer(block: Block, parts: Sequence[Tensor], relay: Relay, gather: str = "x") -> list[Tensor]:
    """Every rank's rows [P, D] after a layer, with attention for each of them apart."""
    attn, h = block.attn, [block.norm1(part) for part in parts]
    if gather == "x":
        seen = [attn.keys_values(block.norm1(x_SD[None])) for x_SD in relay.all_gather_seen(parts)]
    else:
        sides = relay.all_gather_seen([torch.cat([attn.k(h_PD), attn.v(h_PD)], dim=-1) for h_PD in h])
        seen = [[attn.split_heads(side[None]) for side in kv_SE.chunk(2, dim=-1)] for kv_SE in sides]
    return [
        block.finish(part[None], attn.mix(attn.query(h_PD[None]), *keys_values))[0]
        for part, h_PD, keys_values in zip(parts, h, seen, strict=True)
    ]


def check_rows(name: str, shape: ModelShape, world: int) -> None:
    """ConfigError unless each device has a row."""
    if world > shape.sequence:
        raise ConfigError("devices", world, f"{name} needs 1 to {shape.sequence} devices, one row each")


def embed_macs(shape: ModelShape, rows: Sequence[int], rank: int) -> int:
    """MACs that embed one of the ranks' ``rows``; rank 0 has the class token, which is not embedded by a product."""
    return shape.embed_macs(rows[rank] - (shape.class_tokens if rank == 0 else 0))


def reorders(shape: ModelShape, own: int) -> bool:
    """Whether ``own`` rows take fewer MACs with Voltage's order: 1/P - 1/S > 1/F_H - 1/F, in whole numbers."""
    return naive_macs(shape, own) > reordered_macs(shape, own)


def naive_macs(shape: ModelShape, own: int) -> int:
    """Projections and attention of ``own`` rows to all: P F F_H + 2 S F F_H + 2 P S F_H a head."""
    return shape.query_macs(own) + shape.key_value_macs(shape.sequence) + shape.attend_macs(own, shape.sequence)


def reordered_macs(shape: ModelShape, own: int) -> int:
    """The same in Voltage's order: 3 P F F_H + 2 P S F a head."""
    return 3 * shape.query_macs(own) + 2 * own * shape.sequence * shape.hidden * shape.heads


def _mix_embeddings(attn: Attention, own_BPD: Tensor, all_BSD: Tensor) -> Tensor:
    """``attn.mix`` in Voltage's order: [B, P, H*K] of normalized embeddings, without their keys and values."""
    width = attn.q.out_features // attn.heads
    key_HKD, value_HKD = (side.weight.unflatten(0, (attn.heads, width)) for side in (attn.k, attn.v))
    q_BHPD = torch.matmul(attn.query(own_BPD), key_HKD)
    h_BHSD = all_BSD[:, None].expand(-1, attn.heads, -1, -1)
    summed_BHPD = F.scaled_dot_product_attention(q_BHPD, h_BHSD, h_BHSD, scale=1 / math.sqrt(width))
    mixed_BHPK = torch.matmul(summed_BHPD, value_HKD.transpose(-2, -1))
    return mixed_BHPK.transpose(-3, -2).flatten(-2) + attn.v.bias


def segment_macs(shape: ModelShape, rows: Sequence[int], rank: int) -> SegmentMacs:
    """What one rank computes in each segment; rows: of every rank."""
    own = rows[rank]
    attention = reordered_macs(shape, own) if reorders(shape, own) else naive_macs(shape, own)
    return SegmentMacs(
        embed=embed_macs(shape, rows, rank),
        layer=attention + shape.finish_macs(own),
        project=shape.query_macs(own) + shape.key_value_macs(own),
        attend=shape.attend_macs(own, shape.sequence) + shape.finish_macs(own),
        head=shape.head_macs() if rank == 0 else 0,
    )
