"""PRISM (Qazi, Iosifidis and Zhang, arXiv 2507.12145; docs/baselines.md, section 3.8): devices exchange segment means.

Rows are split. In each layer a device divides its own rows into S segments of consecutive rows and sends their means.
Its queries attend to its own rows and to the means of other devices. The device computes the keys and values of these
means itself. A mean stands for its whole segment: the logarithm of the segment's length is added to its score, as if
each row of the segment equaled the mean. The class token is an ordinary row of the first segment of rank 0.

Shape suffixes: P own rows, R means of other ranks, S sequence, M all means, D hidden.
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
from testbed.compressed_collectives import CompressedGroup, Relay
from testbed.device.clock import DeviceClock
from testbed.errors import ConfigError
from testbed.methods.row_parallel import RowParallel, RowShard
from testbed.models.shape import ModelShape
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import Work, memory_pass


@dataclass(frozen=True)
class PrismShard(RowShard):
    """The whole model and the rows of this rank. lengths: rows in each segment of each rank."""

    lengths: list[list[int]]

    def means(self, x_PD: Tensor) -> Tensor:
        """The means of own segments, [segment_means, D]."""
        return torch.stack([segment.mean(0) for segment in x_PD.split(self.lengths[self.rank])])

    def layer(self, block: Block, x_PD: Tensor, means_MD: Tensor) -> Tensor:
        """Own rows [P, D] after a layer, from own rows and all means before it."""
        rank, each = self.rank, len(self.lengths[0])
        others = [means for peer, means in enumerate(means_MD.split(each)) if peer != rank]
        counts = [count for peer, lengths in enumerate(self.lengths) if peer != rank for count in lengths]
        h_BD = block.norm1(torch.cat([x_PD, *others])[None])
        log_counts = torch.tensor(counts, dtype=torch.float32, device=x_PD.device).log()
        bias_R = torch.cat([torch.zeros(len(x_PD), device=x_PD.device), log_counts])
        q_BHPK = block.attn.query(h_BD[:, : len(x_PD)])
        mixed = block.attn.mix(q_BHPK, *block.attn.keys_values(h_BD), visible=bias_R.expand(len(x_PD), -1))
        return block.finish(x_PD[None], mixed)[0]


class Prism(RowParallel):
    """One all-gather of segment means per layer. segment_means: how many each device sends."""

    name: ClassVar[str] = "prism"

    def __init__(self, segment_means: int = 8, codec: str = "fp32"):
        super().__init__(codec)
        self.segment_means, self.exact = segment_means, False

    def _variant(self) -> list[str]:
        return [f"S={self.segment_means}"]

    def check(self, shape: ModelShape, world: int) -> None:
        """Raise ConfigError (keys ``devices``, ``prism.segment_means``) unless each segment has a row."""
        super().check(shape, world)
        most = min(self.rows(shape, world))
        if not 1 <= self.segment_means <= most:
            allowed = f"must be from 1 to {most}: {world} devices have {shape.sequence} rows, each segment needs one"
            raise ConfigError("prism.segment_means", self.segment_means, allowed)

    def shard(self, model: VisionTransformer, rank: int, world: int) -> PrismShard:
        """The whole model, the rows of each rank, and their segments."""
        self.check(model.shape, world)
        rows = self.rows(model.shape, world)
        return PrismShard(model, rows, rank, [even_shares(count, self.segment_means) for count in rows])

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: PrismShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Each rank has its own content tokens, rank 0 the logits."""
        compressed = CompressedGroup(group, clock, self.codec)
        shape, own = shard.model.shape, shard.rows[group.rank]
        average, layer = self._average(shape, own), self._attend(shape, own, group.world)
        x_PD = shard.run_embed(clock, inputs)
        for block in cast(Iterable[Block], shard.model.blocks):
            means = clock.run("encode", average, partial(shard.means, x_PD))
            means_MD = compressed.all_gather(means, [self.segment_means] * group.world)
            x_PD = clock.run("compute", layer, partial(shard.layer, block, x_PD, means_MD))
        return shard.run_head(clock, x_PD, compressed.messages)

    def gathered(self, shape: ModelShape, world: int) -> tuple[list[int], int]:
        """The means of own segments."""
        return [self.segment_means] * world, shape.hidden

    def layer_work(self, shape: ModelShape, rows: Sequence[int], rank: int) -> Work:
        """Own rows attend to themselves and to the means of other ranks, whose keys and values are computed as well."""
        return self._average(shape, rows[rank]) + self._attend(shape, rows[rank], len(rows))

    def _average(self, shape: ModelShape, own: int) -> Work:
        """The means of own segments, one after another, and their join."""
        means = memory_pass((own + self.segment_means) * shape.hidden, self.segment_means)
        return means + memory_pass(2 * self.segment_means * shape.hidden)

    def _attend(self, shape: ModelShape, own: int, world: int) -> Work:
        """The layer of own rows."""
        keys = own + (world - 1) * self.segment_means
        joined = memory_pass(2 * keys * shape.hidden) + memory_pass(6 * keys, 3)  # rows, and numbers added to scores
        projections = shape.norm(keys) + shape.query(own) + shape.keys_values(keys)
        return joined + projections + shape.attend(own, keys) + shape.finish(own)

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: one attention to all rows and all means, with a mask of what each query sees."""
        relay, rows = Relay(self.codec, world, sent), self.rows(model.shape, world)
        lengths = torch.tensor([even_shares(count, self.segment_means) for count in rows])
        owner_S = torch.arange(world).repeat_interleave(torch.tensor(rows))
        owner_M = torch.arange(world).repeat_interleave(self.segment_means)
        segment_S = torch.arange(lengths.numel()).repeat_interleave(lengths.flatten())
        x_SD = model.embed(inputs)[0]
        lengths_M = lengths.flatten().to(x_SD.dtype)
        averages_MS = (torch.arange(lengths.numel())[:, None] == segment_S) / lengths_M[:, None]
        rows_bias_SS = x_SD.new_zeros(len(owner_S), len(owner_S)).masked_fill(owner_S[:, None] != owner_S, -math.inf)
        means_bias_SM = lengths_M.log().expand(len(owner_S), -1).masked_fill(owner_S[:, None] == owner_M, -math.inf)
        bias = torch.cat([rows_bias_SS, means_bias_SM], dim=1)
        for block in cast(Iterable[Block], model.blocks):
            means_MD = torch.cat(relay.all_gather((averages_MS @ x_SD).split(self.segment_means)))
            h_BD = block.norm1(torch.cat([x_SD, means_MD])[None])
            q_BHSK = block.attn.query(h_BD[:, : len(x_SD)])
            mixed = block.attn.mix(q_BHSK, *block.attn.keys_values(h_BD), visible=bias)
            x_SD = block.finish(x_SD[None], mixed)[0]
        return model.outputs(x_SD)
