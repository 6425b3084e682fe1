"""PRISM (arXiv 2507.12145): rows split, and devices tell each other the means of segments of their rows only.

Per layer each device cuts its own rows into S segments of consecutive rows and sends their means. Its queries attend to
its own rows, and to the others' means, whose keys and values it computes. A mean stands for its segment: the log of the
segment's length is added to its score, as if each row of the segment were the mean. The class token is an ordinary row
of rank 0's first segment.

Shape suffixes: P own rows, R other ranks' means, S sequence, M all means, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor

from testbed.comm.group import Group, even_shares
from testbed.compressed_collectives import CodedGroup, Relay, gathered_bits
from testbed.device.clock import DeviceClock
from testbed.errors import ConfigError
from testbed.methods.base import CodedMethod
from testbed.methods.sequence import SequenceShard, check_rows, embed_macs
from testbed.models.shape import ModelShape
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer
from testbed.output import Output


@dataclass(frozen=True)
class PrismShard:
    """The whole model with this rank's rows, and how many rows each rank's segments have."""

    own: SequenceShard
    lengths: list[list[int]]

    def means(self, x_PD: Tensor) -> Tensor:
        """The means of own segments, one row each."""
        return torch.stack([part.mean(0) for part in x_PD.split(self.lengths[self.own.rank])])

    def layer(self, block: Block, x_PD: Tensor, means_MD: Tensor) -> Tensor:
        """Own rows [P, D] after one layer, from everyone's means before it."""
        rank, each = self.own.rank, len(self.lengths[0])
        others = [part for peer, part in enumerate(means_MD.split(each)) if peer != rank]
        counts = [count for peer, part in enumerate(self.lengths) if peer != rank for count in part]
        h_BD = block.norm1(torch.cat([x_PD, *others])[None])
        bias_R = torch.cat([torch.zeros(len(x_PD)), torch.tensor(counts, dtype=torch.float32).log()])
        q_BHPK = block.attn.query(h_BD[:, : len(x_PD)])
        mixed = block.attn.mix(q_BHPK, *block.attn.keys_values(h_BD), visible=bias_R.expand(len(x_PD), -1))
        return block.finish(x_PD[None], mixed)[0]


class Prism(CodedMethod):
    """One all-gather of ``segments`` means of each device per layer."""

    name: ClassVar[str] = "prism"

    def __init__(self, segment_means: int = 8, codec: str = "fp32"):
        super().__init__(codec)
        self.segment_means, self.exact = segment_means, False

    def _variant(self) -> list[str]:
        return [f"S={self.segment_means}"]

    def check(self, shape: ModelShape, world: int) -> None:
        """Each segment needs a row."""
        check_rows(self.name, shape, world)
        most = min(self.shares(shape.sequence, world))
        if not 1 <= self.segment_means <= most:
            allowed = f"must be from 1 to {most}: {world} devices have {shape.sequence} rows, each segment needs one"
            raise ConfigError("prism.segment_means", self.segment_means, allowed)

    def shard(self, model: VisionTransformer, rank: int, world: int) -> PrismShard:
        """The whole model and the ranks' segments."""
        self.check(model.shape, world)
        own = SequenceShard(model, self.shares(model.shape.sequence, world), rank)
        return PrismShard(own, [even_shares(count, self.segment_means) for count in own.rows])

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: PrismShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Each rank has its own content tokens, rank 0 the logits."""
        own, shape, coded = shard.own, shard.own.model.shape, CodedGroup(group, clock, self.codec)
        macs = self._layer_macs(shape, group.rank, group.world)
        x_PD = clock.run("compute", embed_macs(shape, own.rows, group.rank), partial(own.embed, inputs))
        for block in cast(Iterable[Block], own.model.blocks):
            means = clock.run("encode", 0, partial(shard.means, x_PD))  # no products, as with codecs
            means_MD = coded.all_gather(means, [self.segment_means] * group.world)
            x_PD = clock.run("compute", macs, partial(shard.layer, block, x_PD, means_MD))
        hidden_PD, logits = clock.run("compute", 0 if own.start else shape.head_macs(), partial(own.finish, x_PD))
        return Output(hidden_PD, max(own.start - 1, 0), logits, messages=coded.messages)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """The others' means, once per layer."""
        gathered = gathered_bits(self.codec, [self.segment_means] * world, shape.hidden)
        return tuple(shape.layers * bits for bits in gathered)

    def messages(self, shape: ModelShape, world: int) -> int:
        """One from everybody per layer."""
        return shape.layers * (world - 1)

    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """Own rows attend to themselves and to the others' means, whose keys and values are computed here too."""
        head = 0 if rank else shape.head_macs()
        embed = embed_macs(shape, self.shares(shape.sequence, world), rank)
        return embed + shape.layers * self._layer_macs(shape, rank, world) + head

    def _layer_macs(self, shape: ModelShape, rank: int, world: int) -> int:
        own = self.shares(shape.sequence, world)[rank]
        known = own + (world - 1) * self.segment_means
        projections = shape.query_macs(own) + shape.key_value_macs(known)
        return projections + shape.attend_macs(own, known) + shape.finish_macs(own)

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: one attention over all rows and all means, with a mask of who sees what."""
        relay, rows = Relay(self.codec, world, sent), self.shares(model.shape.sequence, world)
        lengths = torch.tensor([even_shares(count, self.segment_means) for count in rows])
        owner_S = torch.arange(world).repeat_interleave(torch.tensor(rows))
        owner_M = torch.arange(world).repeat_interleave(self.segment_means)
        segment_S = torch.arange(lengths.numel()).repeat_interleave(lengths.flatten())
        averages_MS = (torch.arange(lengths.numel())[:, None] == segment_S) / lengths.flatten()[:, None]
        rows_bias_SS = torch.zeros(len(owner_S), len(owner_S)).masked_fill(owner_S[:, None] != owner_S, -math.inf)
        means_bias_SM = (
            lengths.flatten().log().expand(len(owner_S), -1).masked_fill(owner_S[:, None] == owner_M, -math.inf)
        )
        x_SD = model.embed(inputs)[0]
        for block in cast(Iterable[Block], model.blocks):
            means_MD = torch.cat(relay.all_gather((averages_MS @ x_SD).split(self.segment_means)))
            h_BD = block.norm1(torch.cat([x_SD, means_MD])[None])
            keys_values = block.attn.keys_values(h_BD)
            visible = torch.cat([rows_bias_SS, means_bias_SM], dim=1)
            mixed = block.attn.mix(block.attn.query(h_BD[:, : len(x_SD)]), *keys_values, visible=visible)
            x_SD = block.finish(x_SD[None], mixed)[0]
        x_SD = model.norm(x_SD)
        return x_SD[1:], model.classify(x_SD[:1])[0]
