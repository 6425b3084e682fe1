"""Tensor parallelism with sequence-parallel norms (Korthikanti et al., arXiv 2205.05198).

Definition and volumes: docs/baselines.md, section 3.3.

Heads and MLP columns are split as in ``tensor``. Between them a device keeps only its own rows: an all-gather of the
normalized rows precedes the heads and the MLP, and a reduce-scatter of the partial sums follows each. Together they
move as much as the two all-reduces of ``tensor``. The gain is memory, and the norms of other devices' rows. Rows are
shared equally between devices of any speed: they carry no matrix products, but the largest share makes the longest
messages.

Shape suffixes: S sequence, P own rows, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor

from testbed.comm.group import Group, even_shares
from testbed.comm.wire import Wire
from testbed.compressed_collectives import (
    CompressedGroup,
    Relay,
    gather_work,
    gathered_bits,
    scatter_work,
    scattered_bits,
)
from testbed.device.clock import DeviceClock
from testbed.errors import ConfigError
from testbed.methods.base import CompressedMethod
from testbed.methods.row_parallel import RowShard, embed_work, head_work
from testbed.methods.tensor import LayerShard, Widths, split_block
from testbed.models.shape import ModelShape
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import Work, total


@dataclass(frozen=True)
class MegatronShard(RowShard):
    """The whole model, the rows of this rank, and its heads and MLP columns of each block, as in ``tensor``."""

    layers: list[LayerShard]


class MegatronSequenceParallel(CompressedMethod):
    """Two all-gathers and two reduce-scatters per layer."""

    name: ClassVar[str] = "megatron_sp"

    @property
    def traffic(self) -> tuple[str, ...]:
        """Partial sums between all pairs, and rows to all."""
        return ("pairs", "gather")

    def check(self, shape: ModelShape, world: int) -> None:
        """Raise ConfigError (key ``devices``) unless each device has a row, a head and an MLP column."""
        most = min(shape.sequence, shape.heads, shape.mlp_hidden)
        if world > most:
            allowed = f"{self.name} needs 1 to {most} devices, one row and one head each at least"
            raise ConfigError("devices", world, allowed)

    def shard(self, model: VisionTransformer, rank: int, world: int) -> MegatronShard:
        """Views of the model's weights, and the rank's rows."""
        self.check(model.shape, world)
        widths = Widths.of(self, model.shape, world)
        layers = [split_block(block, widths, rank) for block in cast(Iterable[Block], model.blocks)]
        return MegatronShard(model, even_shares(model.shape.sequence, world), rank, layers)

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: MegatronShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Each rank has its own content tokens, rank 0 the logits."""
        rows, shape, compressed = shard.rows, shard.model.shape, CompressedGroup(group, clock, self.codec)
        attend, mlp = Widths.of(self, shape, group.world).work(shape, group.rank)
        own = rows[group.rank]
        norm, add_sum = shape.norm(own), shape.add_sum(own)
        x_PD = shard.run_embed(clock, inputs)
        for layer in shard.layers:
            h_SD = compressed.all_gather(clock.run("compute", norm, partial(layer.block.norm1, x_PD)), rows)
            partial_SD = clock.run("compute", attend, partial(layer.attend, h_SD))
            sum_PD = compressed.reduce_scatter(partial_SD, rows)
            x_PD, h_PD = clock.run("compute", add_sum + norm, partial(after_attention, layer.block, x_PD, sum_PD))
            partial_SD = clock.run("compute", mlp, partial(layer.mlp, compressed.all_gather(h_PD, rows)))
            sum_PD = compressed.reduce_scatter(partial_SD, rows)
            x_PD = clock.run("compute", add_sum, partial(layer.after_mlp, x_PD, sum_PD))
        return shard.run_head(clock, x_PD, compressed.messages)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Twice in each layer: all rows but the own ones, and the other ranks' partial sums of own rows."""
        rows = even_shares(shape.sequence, world)
        gathered, scattered = (bits(self.codec, rows, shape.hidden) for bits in (gathered_bits, scattered_bits))
        return tuple(2 * shape.layers * sum(both) for both in zip(gathered, scattered, strict=True))

    def messages(self, shape: ModelShape, world: int) -> int:
        """N - 1 in each of two gathers and two sums per layer: from each other rank, or in the steps of a ring."""
        return 4 * shape.layers * (world - 1)

    def rounds(self, shape: ModelShape, world: int, wire: Wire) -> int:
        """Two gathers and two sums per layer."""
        longest = self.codec.encoded_bytes(even_shares(shape.sequence, world)[0] * shape.hidden)
        return 4 * shape.layers * wire.rounds(longest, world)

    def work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """A share of heads and MLP columns for all rows; embedding and norms of own rows; on rank 0 the head."""
        rows = even_shares(shape.sequence, world)
        halves = total(Widths.of(self, shape, world).work(shape, rank))
        own = 2 * (shape.norm(rows[rank]) + shape.add_sum(rows[rank]))
        layers = shape.layers * (halves + own + self._exchange_work(shape, rows, rank))
        return embed_work(shape, rows, rank) + layers + head_work(shape, rows, rank)

    def _exchange_work(self, shape: ModelShape, rows: Sequence[int], rank: int) -> Work:
        """Codecs and additions of a layer: two gathers and two sums."""
        both = (each(self.codec, rows, shape.hidden, rank) for each in (gather_work, scatter_work))
        return 2 * total(both)

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: the partial sums of each rank are computed from the rows as that rank receives them."""
        relay, rows = Relay(self.codec, world, sent), even_shares(model.shape.sequence, world)
        widths, scatter = Widths.of(self, model.shape, world), partial(relay.reduce_scatter, rows=rows)
        return simulate_split(model, inputs, rows, widths, relay.all_gather_seen, scatter)


def after_attention(block: Block, x_PD: Tensor, sum_PD: Tensor) -> tuple[Tensor, Tensor]:
    """(the residual after attention, the same normalized for the MLP), each [P, D]."""
    x_PD = block.add_attention(x_PD, sum_PD + block.attn.proj.bias)
    return x_PD, block.norm2(x_PD)


def simulate_split(
    model: VisionTransformer,
    inputs: Tensor,
    rows: Sequence[int],
    widths: Widths,
    gather: Callable[[list[Tensor]], list[Tensor]],
    scatter: Callable[[list[Tensor]], list[Tensor]],
) -> tuple[Tensor, Tensor]:
    """All ranks of ``megatron_sp`` or ``galaxy`` in one process: (normalized content rows [T, D], logits [classes]).

    rows: of each rank. gather: the rows of each rank -> all rows, as each rank receives them. scatter: the partial sums
    of each rank -> the sum's rows of each rank.
    """
    parts = list(model.embed(inputs)[0].split(list(rows)))
    for block in cast(Iterable[Block], model.blocks):
        layers = [split_block(block, widths, rank) for rank in range(len(rows))]
        seen = gather([block.norm1(part) for part in parts])
        sums = scatter([layer.attend(h_SD) for layer, h_SD in zip(layers, seen, strict=True)])
        parts = [block.add_attention(part, own + block.attn.proj.bias) for part, own in zip(parts, sums, strict=True)]
        seen = gather([block.norm2(part) for part in parts])
        sums = scatter([layer.mlp(h_SD) for layer, h_SD in zip(layers, seen, strict=True)])
        parts = [block.add_mlp(part, own + block.mlp.fc2.bias) for part, own in zip(parts, sums, strict=True)]
    return model.outputs(torch.cat(parts))
