"""Sequence parallelism, as in Voltage (Hu and Li, ICDCS 2024; docs/baselines.md, section 3.5).

Each device has all weights and its own rows of the sequence. Queries come from own rows, keys and values from all
rows. ``sequence.gather`` selects what devices gather before each attention:

x   the rows themselves, as in Voltage. Each device computes the keys and values of all rows again.
kv  keys and values: twice the numbers, and nothing is computed twice.

Voltage also reorders the products. A device with few rows need not compute all keys and values: scores are
((h_own W_Q) W_K^T) h_all^T, and the weighted sum of h_all is multiplied by W_V. The bias of the keys adds the same
number to all scores of a query, so softmax cancels it. Attention weights sum to 1, so the bias of the values is added
once.

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
from testbed.compressed_collectives import CompressedGroup, Relay, scattered_bits
from testbed.device.clock import DeviceClock
from testbed.errors import ConfigError
from testbed.methods.row_parallel import RowParallel, RowShard, project_work
from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention, Block
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import Work, attention, memory_pass, product

GATHERED = ("x", "kv")


class SequenceParallel(RowParallel):
    """Rows are split; one all-gather per layer. gather: ``x`` or ``kv``."""

    name: ClassVar[str] = "sequence"

    def __init__(self, gather: str = "x", codec: str = "fp32"):
        super().__init__(codec)
        if gather not in GATHERED:
            raise ConfigError("sequence.gather", gather, f"allowed: {', '.join(GATHERED)}")
        self.gather = gather

    def _variant(self) -> list[str]:
        return ["kv"] if self.gather == "kv" else []

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: RowShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Each rank has its own content tokens, rank 0 the logits."""
        shape, compressed = shard.model.shape, CompressedGroup(group, clock, self.codec)
        work = segment_work(shape, shard.rows[group.rank])
        reorder = reorders(shape, shard.rows[group.rank])
        x_PD = shard.run_embed(clock, inputs)
        for block in cast(Iterable[Block], shard.model.blocks):
            if self.gather == "x":
                all_SD = compressed.all_gather(x_PD, shard.rows)
                x_PD = clock.run("compute", work.layer, partial(layer_from_rows, shard, block, reorder, all_SD))
            else:
                q_BHPK, kv_PE = clock.run("compute", work.project, partial(shard.project, block, x_PD))
                kv_SE = compressed.all_gather(kv_PE, shard.rows)
                x_PD = clock.run("compute", work.attend, partial(_layer_from_keys_values, block, x_PD, q_BHPK, kv_SE))
        return shard.run_head(clock, x_PD, compressed.messages)

    def gathered(self, shape: ModelShape, world: int) -> tuple[list[int], int]:
        """Own rows, or their keys and values."""
        return self.rows(shape, world), shape.hidden if self.gather == "x" else 2 * shape.key_width

    def wire_bits(self, shape: ModelShape, world: int) -> int:
        """The rank with the most rows sends them to all others, which is more than any rank receives."""
        return shape.layers * max(scattered_bits(self.codec, *self.gathered(shape, world)))

    def layer_work(self, shape: ModelShape, rows: Sequence[int], rank: int) -> Work:
        """Keys and values of all rows (``x``) or of own rows (``kv``); everything else of own rows."""
        work = segment_work(shape, rows[rank])
        return work.layer if self.gather == "x" else work.project + work.attend

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: full attention for each rank, to rows or keys and values as that rank receives them."""
        rows, relay = self.rows(model.shape, world), Relay(self.codec, world, sent)
        return simulate_sequence(model, inputs, rows, relay, self.gather)


@dataclass(frozen=True)
class SegmentWork:
    """Work of one rank in the segments of a layer.

    layer: the one segment with ``gather=x``. project, attend: the two segments with ``gather=kv``.
    """

    layer: Work
    project: Work
    attend: Work


def segment_work(shape: ModelShape, own: int) -> SegmentWork:
    """The work of a rank with ``own`` rows."""
    mix = reordered_work(shape, own) if reorders(shape, own) else naive_work(shape, own)
    return SegmentWork(
        layer=shape.norm(shape.sequence) + mix + shape.finish(own),
        project=project_work(shape, own),
        attend=shape.attend(own, shape.sequence) + shape.finish(own),
    )


def reorders(shape: ModelShape, own: int) -> bool:
    """Whether Voltage's order takes fewer MACs for ``own`` rows: 1/P - 1/S > 1/F_H - 1/F, in whole numbers."""
    return naive_work(shape, own).macs > reordered_work(shape, own).macs


def naive_work(shape: ModelShape, own: int) -> Work:
    """Projections and attention in the usual order: P F F_H + 2 S F F_H + 2 P S F_H MACs for each head."""
    return shape.query(own) + shape.keys_values(shape.sequence) + shape.attend(own, shape.sequence)


def reordered_work(shape: ModelShape, own: int) -> Work:
    """The same in Voltage's order: 3 P F F_H + 2 P S F MACs for each head. Queries and weighted sums are of width F.

    The heads of a projection are one kernel. At the end they are put side by side, and the bias of values is added.
    """
    head_width = shape.query_width // shape.heads
    into = product(own, head_width, shape.hidden, shape.heads)
    out_of = product(own, shape.hidden, head_width, shape.heads)
    mix = attention(own, shape.sequence, shape.hidden * shape.heads, shape.hidden)
    return shape.query(own) + into + out_of + mix + memory_pass(4 * own * shape.query_width, 2)


def layer_from_rows(shard: RowShard, block: Block, reorder: bool, all_SD: Tensor) -> Tensor:
    """Own rows [P, D] after a layer, from all rows before it. reorder: multiply in Voltage's order."""
    h_BSD = block.norm1(all_SD[None])
    own_BPD = h_BSD[:, shard.start : shard.stop]
    if reorder:
        mixed_BPD = _mix_reordered(block.attn, own_BPD, h_BSD)
    else:
        mixed_BPD = block.attn.mix(block.attn.query(own_BPD), *block.attn.keys_values(h_BSD))
    return block.finish(all_SD[None, shard.start : shard.stop], mixed_BPD)[0]


def _layer_from_keys_values(block: Block, x_PD: Tensor, q_BHPK: Tensor, kv_SE: Tensor) -> Tensor:
    """Own rows [P, D] after a layer, from their queries and the keys and values of all rows."""
    k_BHSK, v_BHSK = (block.attn.split_heads(side[None]) for side in kv_SE.chunk(2, dim=-1))
    return block.finish(x_PD[None], block.attn.mix(q_BHPK, k_BHSK, v_BHSK))[0]


def _mix_reordered(attn: Attention, own_BPD: Tensor, all_BSD: Tensor) -> Tensor:
    """``attn.mix`` in Voltage's order: [B, P, H*K] of normalized embeddings, without keys and values of all rows."""
    width = attn.q.out_features // attn.heads
    key_HKD, value_HKD = (side.weight.unflatten(0, (attn.heads, width)) for side in (attn.k, attn.v))
    q_BHPD = torch.matmul(attn.query(own_BPD), key_HKD)
    h_BHSD = all_BSD[:, None].expand(-1, attn.heads, -1, -1)
    summed_BHPD = F.scaled_dot_product_attention(q_BHPD, h_BHSD, h_BHSD, scale=1 / math.sqrt(width))
    mixed_BHPK = torch.matmul(summed_BHPD, value_HKD.transpose(-2, -1))
    return mixed_BHPK.transpose(-3, -2).flatten(-2) + attn.v.bias


def simulate_sequence(
    model: VisionTransformer, inputs: Tensor, rows: Sequence[int], relay: Relay, gather: str
) -> tuple[Tensor, Tensor]:
    """All ranks in one process, as Method.simulate. rows: of each rank."""
    parts = list(model.embed(inputs)[0].split(list(rows)))
    for block in cast(Iterable[Block], model.blocks):
        parts = simulate_layer(block, parts, relay, gather)
    return model.outputs(torch.cat(parts))


def simulate_layer(block: Block, parts: Sequence[Tensor], relay: Relay, gather: str = "x") -> list[Tensor]:
    """The rows [P, D] of every rank after a layer, with a separate attention for each rank."""
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
