"""Tensor parallelism with sequence-parallel norms and residuals (Megatron-LM; Korthikanti et al., arXiv 2205.05198).

Heads and MLP columns are split as in ``tensor``, but between them a device keeps only its own rows: an all-gather of
the normalized rows before the heads and before the MLP, a reduce-scatter of the terms after each. Together they cost
what the two all-reduces of ``tensor`` cost; what is saved is memory, and the norms of other devices' rows. Rows are
shared out equally to devices of any speed: they carry no products, but the most rows make the longest messages.

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
from testbed.compressed_collectives import CodedGroup, Relay, gathered_bits, scattered_bits
from testbed.device.clock import DeviceClock
from testbed.errors import ConfigError
from testbed.methods.base import CodedMethod
from testbed.methods.sequence import SequenceShard, embed_macs
from testbed.methods.tensor import LayerShard, Widths, split_block
from testbed.models.shape import ModelShape
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer
from testbed.output import Output


@dataclass(frozen=True)
class MegatronShard:
    """This rank's rows, as in ``sequence``, and its part of each block, as in ``tensor``."""

    own: SequenceShard
    layers: list[LayerShard]


class MegatronSequenceParallel(CodedMethod):
    """Two all-gathers and two reduce-scatters per layer."""

    name: ClassVar[str] = "megatron_sp"

    @property
    def traffic(self) -> tuple[str, ...]:
        """Terms to be summed, and rows."""
        return ("pairs", "gather")

    def check(self, shape: ModelShape, world: int) -> None:
        """Each device needs a row and a head; shares may differ by one."""
        most = min(shape.sequence, shape.heads, shape.mlp_hidden)
        if world > most:
            allowed = f"{self.name} needs 1 to {most} devices, one row and one head each at least"
            raise ConfigError("devices", world, allowed)

    def shard(self, model: VisionTransformer, rank: int, world: int) -> MegatronShard:
        """Views of the model's weights, and the rank's place in the sequence."""
        self.check(model.shape, world)
        widths = Widths.of(self, model.shape, world)
        layers = [split_block(block, widths, rank) for block in cast(Iterable[Block], model.blocks)]
        return MegatronShard(SequenceShard(model, even_shares(model.shape.sequence, world), rank), layers)

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: MegatronShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Each rank has its own content tokens, rank 0 the logits."""
        own, rows = shard.own, shard.own.rows
        shape, coded = own.model.shape, CodedGroup(group, clock, self.codec)
        heads, columns = Widths.of(self, shape, group.world).macs(shape, group.rank)
        x_PD = clock.run("compute", embed_macs(shape, rows, group.rank), partial(own.embed, inputs))
        for layer in shard.layers:
            h_SD = coded.all_gather(clock.run("compute", 0, partial(layer.block.norm1, x_PD)), rows)
            term_SD = clock.run("compute", heads, partial(layer.attend, h_SD))
            sum_PD = coded.reduce_scatter(term_SD, rows)
            x_PD, h_PD = clock.run("compute", 0, partial(after_attention, layer.block, x_PD, sum_PD))
            term_SD = clock.run("compute", columns, partial(layer.mlp, coded.all_gather(h_PD, rows)))
            x_PD = clock.run("compute", 0, partial(layer.after_mlp, x_PD, coded.reduce_scatter(term_SD, rows)))
        hidden_PD, logits = clock.run("compute", 0 if own.start else shape.head_macs(), partial(own.finish, x_PD))
        return Output(hidden_PD, max(own.start - 1, 0), logits, messages=coded.messages)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Twice a layer all rows but the rank's own, and all other terms of its own rows."""
        rows = even_shares(shape.sequence, world)
        gathered, scattered = (bits(self.codec, rows, shape.hidden) for bits in (gathered_bits, scattered_bits))
        return tuple(2 * shape.layers * sum(both) for both in zip(gathered, scattered, strict=True))

    def messages(self, shape: ModelShape, world: int) -> int:
        """One from everybody, or one in each step of a ring, for two gathers and two sums per layer."""
        return 4 * shape.layers * (world - 1)

    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """A share of heads and MLP columns for all rows; embedding of own rows; the head on rank 0."""
        embed = embed_macs(shape, even_shares(shape.sequence, world), rank)
        layer = sum(Widths.of(self, shape, world).macs(shape, rank))
        return embed + shape.layers * layer + (0 if rank else shape.head_macs())

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: the terms of all ranks, each from the rows as that rank has them."""
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
    """All ranks of a method that splits rows between, and heads and columns within, attention and MLP.

    gather: every rank's rows -> all rows, as each rank has them. scatter: every rank's term -> each rank's rows of the
    sum. Returns (normalized content rows [T, D], logits [classes]).
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
    x_SD = model.norm(torch.cat(parts))
    return x_SD[1:], model.classify(x_SD[:1])[0]
