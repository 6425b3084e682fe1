"""Tensor parallelism, as in Megatron-LM (Shoeybi et al., arXiv 1909.08053; docs/baselines.md, section 3.2).

Each device has a share of the attention heads and of the MLP's columns, for all rows. Two sums over devices, of [S, D]
numbers each, follow in every layer: after the attention's output projection and after the MLP. ``tensor.sync`` selects
how they are summed:

ring    A ring all-reduce. With a lossy codec it is the all-reduce of testbed.compressed_collectives.
star    Rank 0 receives all partial sums, adds them and sends the sum to all, as in TPI-LLM (Li et al., arXiv
        2410.00531): fewer steps, and N - 1 times the traffic on the link of rank 0.
gather  Each device receives all partial sums and adds them itself, as in distributed-llama: one step, the most bytes.

Shape suffixes: S sequence, D hidden, E width of this rank's heads, F its MLP columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testbed.comm.group import Group, even_shares
from testbed.comm.wire import Wire
from testbed.compressed_collectives import (
    CompressedGroup,
    Relay,
    gather_work,
    gathered_bits,
    ring_sum_work,
    scatter_work,
    scattered_bits,
    sum_work,
)
from testbed.device.clock import DeviceClock
from testbed.errors import ConfigError
from testbed.methods.base import FLOAT_BITS, CompressedMethod, Method
from testbed.methods.views import linear_view
from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention, Block, Mlp
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import Work, attention, product

SYNCS = ("ring", "star", "gather")


@dataclass(frozen=True)
class Widths:
    """How many attention heads and MLP columns each rank has."""

    heads: list[int]
    columns: list[int]

    @classmethod
    def of(cls, method: Method, shape: ModelShape, world: int) -> Widths:
        """The shares that the method gives each rank: equal, or by speed."""
        return cls(method.shares(shape.heads, world), method.shares(shape.mlp_hidden, world))

    def work(self, shape: ModelShape, rank: int) -> tuple[Work, Work]:
        """Work of one rank in a layer, for all rows, normalized: (projections and attention, MLP)."""
        rows, width = shape.sequence, shape.query_width // shape.heads * self.heads[rank]
        attend = attention(rows, rows, width, width) + product(rows, width, shape.hidden)
        return 3 * product(rows, shape.hidden, width) + attend, shape.mlp(rows, self.columns[rank])


@dataclass(frozen=True)
class LayerShard:
    """One rank's heads and MLP columns of a block, and the whole block for norms, biases and residuals."""

    block: Block
    attn: Attention
    mlp: Mlp

    def norm_attend(self, x_SD: Tensor) -> Tensor:
        """``attend`` of rows that are not normalized yet."""
        return self.attend(self.block.norm1(x_SD))

    def attend(self, h_SD: Tensor) -> Tensor:
        """This rank's heads, projected without bias: its partial sum, [S, D], of normalized rows [S, D]."""
        h_BSD = h_SD[None]
        return self.attn.proj(self.attn.mix(self.attn.query(h_BSD), *self.attn.keys_values(h_BSD)))[0]

    def after_attention(self, x_SD: Tensor, sum_SD: Tensor) -> tuple[Tensor, Tensor]:
        """(the residual after attention, this rank's partial sum of the MLP), each [S, D]."""
        x_SD = self.block.add_attention(x_SD, sum_SD + self.block.attn.proj.bias)
        return x_SD, self.mlp(self.block.norm2(x_SD))

    def after_mlp(self, x_SD: Tensor, sum_SD: Tensor) -> Tensor:
        """The block's output [S, D]."""
        return self.block.add_mlp(x_SD, sum_SD + self.block.mlp.fc2.bias)


@dataclass(frozen=True)
class TensorShard:
    """The whole model, of which each rank uses embedding, final norm and head, and this rank's part of each layer."""

    model: VisionTransformer
    layers: list[LayerShard]


class TensorParallel(CompressedMethod):
    """Heads and MLP columns are split; two sums over ranks per layer. sync: ``ring``, ``star`` or ``gather``."""

    name: ClassVar[str] = "tensor"

    def __init__(self, sync: str = "ring", codec: str = "fp32"):
        super().__init__(codec)
        if sync not in SYNCS:
            raise ConfigError("tensor.sync", sync, f"allowed: {', '.join(SYNCS)}")
        self.sync = sync

    def _variant(self) -> list[str]:
        return [] if self.sync == "ring" else [self.sync]

    @property
    def traffic(self) -> tuple[str, ...]:
        """Parts around a ring, or partial sums and sums, as sync and codec say."""
        if self.sync == "ring":
            return ("pairs", "gather") if self.codec.lossy else ("ring",)
        return ("root",) if self.sync == "star" else ("gather",)

    def check(self, shape: ModelShape, world: int) -> None:
        """Raise ConfigError (key ``devices``) unless each device has a head and an MLP column."""
        most = min(shape.heads, shape.mlp_hidden)
        if world > most:
            raise ConfigError("devices", world, f"tensor needs 1 to {most} devices, one head each at least")

    def shard(self, model: VisionTransformer, rank: int, world: int) -> TensorShard:
        """Views of rows and columns of the model's weight matrices."""
        self.check(model.shape, world)
        widths = Widths.of(self, model.shape, world)
        return TensorShard(model, [split_block(block, widths, rank) for block in cast(Iterable[Block], model.blocks)])

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: TensorShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Every rank has all content tokens and the logits."""
        shape, compressed = shard.model.shape, CompressedGroup(group, clock, self.codec)
        attend, mlp = self._halves(shape, group.rank, group.world)
        total, after_sum = partial(self._sum, compressed), shape.add_sum(shape.sequence)
        x_SD, partial_SD = clock.run("compute", shape.embed(shape.tokens) + attend, partial(_embed, shard, inputs))
        for layer, following in zip(shard.layers, shard.layers[1:], strict=False):
            after_attention = partial(layer.after_attention, x_SD, total(partial_SD))
            x_SD, partial_SD = clock.run("compute", after_sum + mlp, after_attention)
            next_layer = partial(_next_layer, layer, following, x_SD, total(partial_SD))
            x_SD, partial_SD = clock.run("compute", after_sum + attend, next_layer)
        last = shard.layers[-1]
        after_attention = partial(last.after_attention, x_SD, total(partial_SD))
        x_SD, partial_SD = clock.run("compute", after_sum + mlp, after_attention)
        end = after_sum + shape.norm(shape.sequence) + shape.head()
        hidden_TD, logits = clock.run("compute", end, partial(_finish, shard, x_SD, total(partial_SD)))
        return Output(hidden_TD, 0, logits, messages=compressed.messages)

    def _sum(self, compressed: CompressedGroup, partial_SD: Tensor) -> Tensor:
        """The sum over ranks, bit for bit the same on all of them."""
        if self.sync == "ring" and not compressed.codec.lossy:
            return compressed.ring_all_reduce(partial_SD)
        if self.sync == "gather":
            return compressed.sum_gathered(partial_SD)
        summed_by = self._summed_by(partial_SD.numel(), compressed.world)
        return compressed.all_reduce(partial_SD.flatten(), summed_by).view(partial_SD.shape)

    def _summed_by(self, numbers: int, world: int) -> list[int]:
        """How many of the numbers each rank sums."""
        return even_shares(numbers, world) if self.sync == "ring" else [numbers] + [0] * (world - 1)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Two sums per layer.

        ring: rank r receives all parts but r in the reduce-scatter, all but r + 1 in the all-gather. With a lossy codec
        it receives the other ranks' partial sums of its part, then the other parts of the sum. star: rank 0 receives
        all other partial sums, the other ranks the sum. gather: each rank receives all other partial sums.
        """
        numbers = shape.sequence * shape.hidden
        if self.sync == "gather":
            each = gathered_bits(self.codec, [numbers] * world, 1)
        elif self.sync == "ring" and not self.codec.lossy:
            parts = even_shares(numbers, world)
            each = tuple(FLOAT_BITS * (2 * numbers - parts[rank] - parts[(rank + 1) % world]) for rank in range(world))
        else:
            parts = self._summed_by(numbers, world)
            pairs = zip(scattered_bits(self.codec, parts, 1), gathered_bits(self.codec, parts, 1), strict=True)
            each = tuple(map(sum, pairs))
        return tuple(2 * shape.layers * bits for bits in each)

    def messages(self, shape: ModelShape, world: int) -> int:
        """Two sums per layer: one exchange with ``gather``; otherwise one for partial sums and one for sums."""
        return 2 * shape.layers * (world - 1) * (1 if self.sync == "gather" else 2)

    def rounds(self, shape: ModelShape, world: int, wire: Wire) -> int:
        """In two sums per layer: the steps of a ring, or exchanges of partial sums and of sums."""
        numbers = shape.sequence * shape.hidden
        if self.sync == "gather":
            each = wire.rounds(self.codec.encoded_bytes(numbers), world)
        elif self.sync == "ring" and not self.codec.lossy:
            each = 2 * (world - 1)
        else:
            each = 2 * wire.rounds(self.codec.encoded_bytes(max(self._summed_by(numbers, world))), world)
        return 2 * shape.layers * each

    def work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """A share of each layer, the whole embedding, all norms and the whole head; two sums per layer."""
        attend, mlp = self._halves(shape, rank, world)
        after_sum = shape.add_sum(shape.sequence)
        layers = shape.layers * (attend + mlp + 2 * (after_sum + self._sum_work(shape, rank, world)))
        return shape.embed(shape.tokens) + layers + shape.norm(shape.sequence) + shape.head()

    def _halves(self, shape: ModelShape, rank: int, world: int) -> tuple[Work, Work]:
        """Work of one rank in the halves of a layer, each with its norm."""
        attend, mlp = Widths.of(self, shape, world).work(shape, rank)
        return shape.norm(shape.sequence) + attend, shape.norm(shape.sequence) + mlp

    def _sum_work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """Work of one sum over ranks: codecs and additions."""
        numbers = shape.sequence * shape.hidden
        if self.sync == "gather":
            return gather_work(self.codec, [1] * world, numbers, rank, replicate=True) + sum_work(numbers, world)
        if self.sync == "ring" and (world == 1 or not self.codec.lossy):
            return ring_sum_work(numbers, world)
        parts = self._summed_by(numbers, world)
        return scatter_work(self.codec, parts, 1, rank) + gather_work(self.codec, parts, 1, rank, replicate=True)

    def wire_bits(self, shape: ModelShape, world: int) -> int:
        """With ``star`` the link of rank 0 is busy twice: it receives partial sums, then sends copies of the sum."""
        return (2 if self.sync == "star" else 1) * super().wire_bits(shape, world)

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: the plain model, with every second matrix product split along its inputs and summed."""
        relay = Relay(self.codec, world, sent)
        shape, widths = model.shape, Widths.of(self, model.shape, world)
        numbers, head_width = shape.sequence * shape.hidden, shape.query_width // shape.heads

        def total(inner_SE: Tensor, linear: nn.Linear, parts: list[int]) -> Tensor:
            pairs = zip(inner_SE.split(parts, -1), linear.weight.split(parts, -1), strict=True)
            terms = [F.linear(*pair) for pair in pairs]
            if self.sync == "gather":
                return sum(relay.all_gather(terms), linear.bias)
            flat = [term.reshape(-1) for term in terms]
            return relay.all_reduce(flat, self._summed_by(numbers, world)).view_as(terms[0]) + linear.bias

        of_heads = [heads * head_width for heads in widths.heads]
        x_SD = model.embed(inputs)[0]
        for block in cast(Iterable[Block], model.blocks):
            attn, h_BSD = block.attn, block.norm1(x_SD[None])
            mixed_SE = attn.mix(attn.query(h_BSD), *attn.keys_values(h_BSD))[0]
            x_SD = block.add_attention(x_SD, total(mixed_SE, attn.proj, of_heads))
            inner_SE = F.gelu(block.mlp.fc1(block.norm2(x_SD)), approximate=block.mlp.approximate)
            x_SD = block.add_mlp(x_SD, total(inner_SE, block.mlp.fc2, widths.columns))
        return model.outputs(x_SD)


def _embed(shard: TensorShard, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(the embedded sequence, this rank's partial sum of the first attention), each [S, D]."""
    x_SD = shard.model.embed(inputs)[0]
    return x_SD, shard.layers[0].norm_attend(x_SD)


def _next_layer(layer: LayerShard, following: LayerShard, x_SD: Tensor, sum_SD: Tensor) -> tuple[Tensor, Tensor]:
    """End one layer and begin the next one: nothing is sent between them."""
    x_SD = layer.after_mlp(x_SD, sum_SD)
    return x_SD, following.norm_attend(x_SD)


def _finish(shard: TensorShard, x_SD: Tensor, sum_SD: Tensor) -> tuple[Tensor, Tensor]:
    """(normalized content rows [T, D], logits [classes]) from the last layer's sum."""
    return shard.model.outputs(shard.layers[-1].after_mlp(x_SD, sum_SD))


def split_block(block: Block, widths: Widths, rank: int) -> LayerShard:
    """The heads and MLP columns of one rank in a block, as views of its weights."""
    heads, columns = widths.heads, widths.columns
    hidden, width = block.attn.q.in_features, block.attn.q.out_features // block.attn.heads
    of_heads = slice(sum(heads[:rank]) * width, sum(heads[: rank + 1]) * width)
    of_columns = slice(sum(columns[:rank]), sum(columns[: rank + 1]))
    with torch.device("meta"):  # every weight is replaced by a view below, so none is allocated here
        attn, mlp = Attention(hidden, heads[rank]), Mlp(hidden, block.mlp.fc1.out_features)
    for part in ("q", "k", "v"):
        setattr(attn, part, linear_view(getattr(block.attn, part), outputs=of_heads))
    mlp.fc1 = linear_view(block.mlp.fc1, outputs=of_columns)
    # The biases of both products are added once, after the sum over ranks.
    attn.proj = linear_view(block.attn.proj, inputs=of_heads, bias=False)
    mlp.fc2 = linear_view(block.mlp.fc2, inputs=of_columns, bias=False)
    return LayerShard(block, attn, mlp)
