"""Sequence parallelism with gathered layer inputs, as in Voltage (BASELINES.md: one all-gather per layer).

Each device has all weights and its own rows of the sequence. Before each layer's attention all rows are gathered;
queries come from the device's own rows, keys and values from all of them: each device recomputes every key and value.

Shape suffixes: S sequence, P own rows, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor

from testbed.clock import DeviceClock
from testbed.comm.group import Group, even_shares
from testbed.errors import ConfigError
from testbed.methods.base import FLOAT_BITS, Method, Output
from testbed.models.shape import ModelShape
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer


@dataclass(frozen=True)
class SequenceShard:
    """The whole model, and which rows (the class token is row 0) belong to this rank."""

    model: VisionTransformer
    rows: list[int]  # of every rank
    start: int

    def embed(self, inputs: Tensor, count: int) -> Tensor:
        """This rank's rows [P, D]."""
        return self.model.embed(inputs, self.start, self.start + count)[0]

    def layer(self, block: Block, all_SD: Tensor, count: int) -> Tensor:
        """This rank's rows [P, D] after one layer, from everyone's rows before it."""
        stop = self.start + count
        h_BSD = block.norm1(all_SD[None])
        q_BHPK = block.attn.query(h_BSD[:, self.start : stop])
        mixed_BPD = block.attn.mix(q_BHPK, *block.attn.keys_values(h_BSD))
        return block.finish(all_SD[None, self.start : stop], mixed_BPD)[0]

    def last_layer(self, block: Block, all_SD: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """(normalised content rows, logits where the class token is)."""
        x_PD = self.model.norm(self.layer(block, all_SD, count))
        return (x_PD, None) if self.start else (x_PD[1:], self.model.classify(x_PD[:1])[0])


class SequenceParallel(Method):
    """Rows split as evenly as whole tokens allow; one all-gather per layer."""

    name: ClassVar[str] = "sequence"
    exact: ClassVar[bool] = True

    def check(self, shape: ModelShape, world: int) -> None:
        """Each device needs a row."""
        if world > shape.sequence:
            raise ConfigError("devices", world, f"sequence needs 1 to {shape.sequence} devices, one row each")

    def shard(self, model: VisionTransformer, rank: int, world: int) -> SequenceShard:
        """The whole model and the rank's place."""
        self.check(model.shape, world)
        rows = even_shares(model.shape.sequence, world)
        return SequenceShard(model, rows, sum(rows[:rank]))

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: SequenceShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Each rank has its own content tokens, rank 0 the logits."""
        shape, rank = shard.model.shape, group.rank
        embed_macs, layer_macs, head_macs = _segment_macs(shape, rank, group.world)
        count = shard.rows[rank]
        *blocks, last = cast(Iterable[Block], shard.model.blocks)
        x_PD = clock.run("compute", embed_macs, partial(shard.embed, inputs, count))
        for block in blocks:
            all_SD = group.all_gather(x_PD, shard.rows)
            x_PD = clock.run("compute", layer_macs, partial(shard.layer, block, all_SD, count))
        all_SD = group.all_gather(x_PD, shard.rows)
        hidden_PD, logits = clock.run("compute", layer_macs + head_macs, partial(shard.last_layer, last, all_SD, count))
        return Output(hidden_PD, max(shard.start - 1, 0), logits)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """All rows but the rank's own, once per layer."""
        rows = even_shares(shape.sequence, world)
        return tuple(shape.layers * (shape.sequence - own) * shape.hidden * FLOAT_BITS for own in rows)

    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """Per layer: keys and values of all rows, the rest of the rank's own."""
        embed_macs, layer_macs, head_macs = _segment_macs(shape, rank, world)
        return embed_macs + shape.layers * layer_macs + head_macs


def _segment_macs(shape: ModelShape, rank: int, world: int) -> tuple[int, int, int]:
    """(embedding, one layer, head) of one rank; rank 0 has the class token, which is not embedded by a product."""
    own = even_shares(shape.sequence, world)[rank]
    layer = (
        shape.query_macs(own)
        + shape.key_value_macs(shape.sequence)
        + shape.attend_macs(own, shape.sequence)
        + shape.finish_macs(own)
    )
    if rank == 0:
        return shape.embed_macs(own - shape.class_tokens), layer, shape.head_macs()
    return shape.embed_macs(own), layer, 0
