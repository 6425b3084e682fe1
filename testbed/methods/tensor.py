"""Tensor parallelism as in Megatron-LM (Shoeybi et al., arXiv 1909.08053).

Each device has a share of the heads and of the MLP's hidden width, and computes them for all tokens. The partial sums
of the attention projection and of the MLP's second layer are added up over the whole [S, D], in one of three ways:

ring    an all-reduce that spreads sums and traffic evenly (with a lossy codec that of testbed.compressed_collectives);
star    rank 0 adds everything up and sends the sum to all, as in TPI-LLM (docs/baselines.md, section 3.2): fewer steps,
but N - 1 times
        the traffic on rank 0's link;
gather  each device gets all terms and adds them up itself, as in distributed-llama: one step, the most traffic.

Shape suffixes: S sequence, D hidden, E width of this rank's heads.
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
from testbed.compressed_collectives import CodedGroup, Relay, gathered_bits, scattered_bits
from testbed.device.clock import DeviceClock
from testbed.errors import ConfigError
from testbed.methods.base import FLOAT_BITS, CodedMethod, Method
from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention, Block, Mlp
from testbed.models.vit import VisionTransformer
from testbed.output import Output

ALL = slice(None)
SYNCS = ("ring", "star", "gather")


@dataclass(frozen=True)
class Widths:
    """How many of the heads, and of the MLP's columns, each rank has."""

    heads: list[int]
    columns: list[int]

    @classmethod
    def of(cls, method: Method, shape: ModelShape, world: int) -> Widths:
        """As the method shares them out."""
        return cls(method.shares(shape.heads, world), method.shares(shape.mlp_hidden, world))

    def macs(self, shape: ModelShape, rank: int) -> tuple[int, int]:
        """One rank's part of a layer, for all rows: (projections and attention, MLP)."""
        rows, heads = shape.sequence, self.heads[rank]
        attention = (4 * rows * shape.hidden**2 + shape.attend_macs(rows, rows)) // shape.heads * heads
        return attention, 2 * rows * shape.hidden * self.columns[rank]


@dataclass(frozen=True)
class LayerShard:
    """One rank's part of a block: its heads, its MLP columns, and the whole block for norms, biases and residuals."""

    block: Block
    attn: Attention
    mlp: Mlp

    def attention_partial(self, x_SD: Tensor) -> Tensor:
        """This rank's heads, projected without bias: a term of the sum over ranks, [S, D]."""
        return self.attend(self.block.norm1(x_SD))

    def attend(self, h_SD: Tensor) -> Tensor:
        """The same of rows that are normalized already."""
        h_BSD = h_SD[None]
        return self.attn.proj(self.attn.mix(self.attn.query(h_BSD), *self.attn.keys_values(h_BSD)))[0]

    def after_attention(self, x_SD: Tensor, sum_SD: Tensor) -> tuple[Tensor, Tensor]:
        """(the residual after attention, this rank's term of the MLP's output), each [S, D]."""
        x_SD = self.block.add_attention(x_SD, sum_SD + self.block.attn.proj.bias)
        return x_SD, self.mlp(self.block.norm2(x_SD))

    def after_mlp(self, x_SD: Tensor, sum_SD: Tensor) -> Tensor:
        """The block's output [S, D]."""
        return self.block.add_mlp(x_SD, sum_SD + self.block.mlp.fc2.bias)


@dataclass(frozen=True)
class TensorShard:
    """Embedding, final norm and head are on every rank."""

    model: VisionTransformer
    layers: list[LayerShard]


class TensorParallel(CodedMethod):
    """Heads and MLP split; two sums over ranks per layer, by ``sync``: ring, star or gather."""

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
        """Chunks round a ring, or terms and sums as ``sync`` and codec say."""
        if self.sync == "ring":
            return ("pairs", "gather") if self.codec.lossy else ("ring",)
        return ("root",) if self.sync == "star" else ("gather",)

    def check(self, shape: ModelShape, world: int) -> None:
        """Each device needs a head and a column; shares may differ."""
        most = min(shape.heads, shape.mlp_hidden)
        if world > most:
            raise ConfigError("devices", world, f"tensor needs 1 to {most} devices, one head each at least")

    def shard(self, model: VisionTransformer, rank: int, world: int) -> TensorShard:
        """Rows and columns of the model's weight matrices, as views."""
        self.check(model.shape, world)
        widths = Widths.of(self, model.shape, world)
        return TensorShard(model, [split_block(block, widths, rank) for block in cast(Iterable[Block], model.blocks)])

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: TensorShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Every rank has all content tokens and the logits."""
        shape, coded = shard.model.shape, CodedGroup(group, clock, self.codec)
        attention, mlp = Widths.of(self, shape, group.world).macs(shape, group.rank)
        total = partial(self._sum, coded)
        first = shape.embed_macs(shape.tokens) + attention
        x_SD, part_SD = clock.run("compute", first, partial(_embed, shard, inputs))
        for layer, following in zip(shard.layers, shard.layers[1:], strict=False):
            x_SD, part_SD = clock.run("compute", mlp, partial(layer.after_attention, x_SD, total(part_SD)))
            x_SD, part_SD = clock.run(
                "compute", attention, partial(_next_layer, layer, following, x_SD, total(part_SD))
            )
        last = shard.layers[-1]
        x_SD, part_SD = clock.run("compute", mlp, partial(last.after_attention, x_SD, total(part_SD)))
        hidden_TD, logits = clock.run("compute", shape.head_macs(), partial(_finish, shard, x_SD, total(part_SD)))
        return Output(hidden_TD, 0, logits, messages=coded.messages)

    def _sum(self, coded: CodedGroup, part_SD: Tensor) -> Tensor:
        """The sum of all ranks' terms, equal on all of them bit for bit."""
        if self.sync == "ring" and not coded.codec.lossy:
            return coded.group.all_reduce(part_SD)
        if self.sync == "gather":
            return coded.sum_gathered(part_SD)
        sums = coded.all_reduce(part_SD.flatten(), self._summed_by(part_SD.numel(), coded.world))
        return sums.view(part_SD.shape)

    def _summed_by(self, numbers: int, world: int) -> list[int]:
        """How many of the numbers each rank adds up."""
        return even_shares(numbers, world) if self.sync == "ring" else [numbers] + [0] * (world - 1)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Two sums per layer.

        ring: rank r receives all chunks but r while summing, all but r + 1 while spreading the sums; with a lossy codec
        its chunk of all other terms, then the others' sums. star: rank 0 all other terms, the others the sum.
        gather: all other terms.
        """
        numbers = shape.sequence * shape.hidden
        if self.sync == "gather":
            each = gathered_bits(self.codec, [numbers] * world, 1)
        elif self.sync == "ring" and not self.codec.lossy:
            chunks = even_shares(numbers, world)
            each = tuple(
                FLOAT_BITS * (2 * numbers - chunks[rank] - chunks[(rank + 1) % world]) for rank in range(world)
            )
        else:
            chunks = self._summed_by(numbers, world)
            pairs = zip(scattered_bits(self.codec, chunks, 1), gathered_bits(self.codec, chunks, 1), strict=True)
            each = tuple(map(sum, pairs))
        return tuple(2 * shape.layers * bits for bits in each)

    def messages(self, shape: ModelShape, world: int) -> int:
        """Two sums per layer: all terms at once, or everyone's part of a sum and then of its result."""
        return 2 * shape.layers * (world - 1) * (1 if self.sync == "gather" else 2)

    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """A share of each layer, and the whole embedding and head."""
        layer = sum(Widths.of(self, shape, world).macs(shape, rank))
        return shape.embed_macs(shape.tokens) + shape.layers * layer + shape.head_macs()

    def wire_bits(self, shape: ModelShape, world: int) -> int:
        """A star's rank 0 has its link busy twice: terms come in, then copies of the sum go out."""
        return (2 if self.sync == "star" else 1) * super().wire_bits(shape, world)

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: the plain model, but each second matrix product cut along its inputs and summed."""
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
        x_SD = model.norm(x_SD)
        return x_SD[1:], model.classify(x_SD[:1])[0]


def _embed(shard: TensorShard, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(the embedded sequence, the first layer's attention term), each [S, D]."""
    x_SD = shard.model.embed(inputs)[0]
    return x_SD, shard.layers[0].attention_partial(x_SD)


def _next_layer(layer: LayerShard, following: LayerShard, x_SD: Tensor, sum_SD: Tensor) -> tuple[Tensor, Tensor]:
    """Close one layer and begin the next: no communication lies between."""
    x_SD = layer.after_mlp(x_SD, sum_SD)
    return x_SD, following.attention_partial(x_SD)


def _finish(shard: TensorShard, x_SD: Tensor, sum_SD: Tensor) -> tuple[Tensor, Tensor]:
    """(normalized content rows [T, D], logits [classes])."""
    x_SD = shard.model.norm(shard.layers[-1].after_mlp(x_SD, sum_SD))
    return x_SD[1:], shard.model.classify(x_SD[:1])[0]


def split_block(block: Block, widths: Widths, rank: int) -> LayerShard:
    """One rank's heads and MLP columns of one block."""
    heads, columns = widths.heads, widths.columns
    hidden, width = block.attn.q.in_features, block.attn.q.out_features // block.attn.heads
    of_heads = slice(sum(heads[:rank]) * width, sum(heads[: rank + 1]) * width)
    of_columns = slice(sum(columns[:rank]), sum(columns[: rank + 1]))
    with torch.device("meta"):  # every weight is replaced by a view below, so none is allocated here
        attn, mlp = Attention(hidden, heads[rank]), Mlp(hidden, block.mlp.fc1.out_features)
    for part in ("q", "k", "v"):
        setattr(attn, part, linear_view(getattr(block.attn, part), outputs=of_heads))
    mlp.fc1 = linear_view(block.mlp.fc1, outputs=of_columns)
    # biases of sums over ranks are added once, after the sum
    attn.proj = linear_view(block.attn.proj, inputs=of_heads, bias=False)
    mlp.fc2 = linear_view(block.mlp.fc2, inputs=of_columns, bias=False)
    return LayerShard(block, attn, mlp)


def linear_view(linear: nn.Linear, outputs: slice = ALL, inputs: slice = ALL, bias: bool = True) -> nn.Linear:
    """A layer that computes a share of the outputs from a share of the inputs; its weights are views."""
    weight = linear.weight[outputs, inputs]
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias, device="meta")
    part.weight = parameter_view(weight)
    if bias:
        part.bias = parameter_view(linear.bias[outputs])
    return part


def parameter_view(part: Tensor) -> nn.Parameter:
    """A view of a parameter as one."""
    return nn.Parameter(part.detach(), requires_grad=False)
