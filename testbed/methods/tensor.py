"""Tensor parallelism as in Megatron-LM (Shoeybi et al., arXiv 1909.08053).

Each device has a share of the heads and of the MLP's hidden width, and computes them for all tokens. The partial sums
of the attention projection and of the MLP's second layer are added up by an all-reduce each, over the whole [S, D].

Shape suffixes: S sequence, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from testbed.clock import DeviceClock
from testbed.comm.group import Group, even_shares
from testbed.errors import ConfigError
from testbed.methods.base import FLOAT_BITS, Method, Output
from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention, Block, Mlp
from testbed.models.vit import VisionTransformer


@dataclass(frozen=True)
class LayerShard:
    """One rank's part of a block: its heads, its MLP columns, and the whole block for norms, biases and residuals."""

    block: Block
    attn: Attention
    mlp: Mlp

    def attention_partial(self, x_SD: Tensor) -> Tensor:
        """This rank's heads, projected without bias: a term of the sum over ranks, [S, D]."""
        h_BSD = self.block.norm1(x_SD[None])
        mixed_BSD = self.attn.mix(self.attn.query(h_BSD), *self.attn.keys_values(h_BSD))
        return self.attn.proj(mixed_BSD)[0]

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


class TensorParallel(Method):
    """Heads and MLP split; two ring all-reduces per layer."""

    name: ClassVar[str] = "tensor"
    exact: ClassVar[bool] = True

    def check(self, shape: ModelShape, world: int) -> None:
        """Heads and MLP width must divide by the number of devices."""
        if shape.heads % world or shape.mlp_hidden % world:
            both = math.gcd(shape.heads, shape.mlp_hidden)
            counts = ", ".join(str(n) for n in range(1, both + 1) if both % n == 0)
            raise ConfigError(
                "devices",
                world,
                f"tensor splits {shape.heads} heads and an MLP of width {shape.mlp_hidden} evenly; allowed: {counts}",
            )

    def shard(self, model: VisionTransformer, rank: int, world: int) -> TensorShard:
        """Rows and columns of the model's weight matrices, as views."""
        self.check(model.shape, world)
        return TensorShard(model, [_split(block, rank, world) for block in cast(Iterable[Block], model.blocks)])

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: TensorShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Every rank has all content tokens and the logits."""
        shape = shard.model.shape
        attention, mlp = _attention_macs(shape, group.world), _mlp_macs(shape, group.world)
        first = shape.embed_macs(shape.tokens) + attention
        x_SD, part_SD = clock.run("compute", first, partial(_embed, shard, inputs))
        for layer, following in zip(shard.layers, shard.layers[1:], strict=False):
            x_SD, part_SD = clock.run("compute", mlp, partial(layer.after_attention, x_SD, group.all_reduce(part_SD)))
            x_SD, part_SD = clock.run(
                "compute", attention, partial(_next_layer, layer, following, x_SD, group.all_reduce(part_SD))
            )
        last = shard.layers[-1]
        x_SD, part_SD = clock.run("compute", mlp, partial(last.after_attention, x_SD, group.all_reduce(part_SD)))
        hidden_TD, logits = clock.run(
            "compute", shape.head_macs(), partial(_finish, shard, x_SD, group.all_reduce(part_SD))
        )
        return Output(hidden_TD, 0, logits)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Ring all-reduce: rank r receives all chunks but r while summing, all but r + 1 while spreading the sums."""
        numbers = shape.sequence * shape.hidden
        chunks = even_shares(numbers, world)
        return tuple(
            2 * shape.layers * FLOAT_BITS * (2 * numbers - chunks[rank] - chunks[(rank + 1) % world])
            for rank in range(world)
        )

    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """The same on every rank: 1/N of all layers, and the whole embedding and head."""
        layer = _attention_macs(shape, world) + _mlp_macs(shape, world)
        return shape.embed_macs(shape.tokens) + shape.layers * layer + shape.head_macs()


def _attention_macs(shape: ModelShape, world: int) -> int:
    """One rank's share of projections and attention of one layer."""
    rows = shape.sequence
    projections = 4 * rows * shape.hidden**2
    return (projections + shape.attend_macs(rows, rows)) // world


def _mlp_macs(shape: ModelShape, world: int) -> int:
    """One rank's share of the MLP of one layer."""
    return 2 * shape.sequence * shape.hidden * shape.mlp_hidden // world


def _embed(shard: TensorShard, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(the embedded sequence, the first layer's attention term), each [S, D]."""
    x_SD = shard.model.embed(inputs)[0]
    return x_SD, shard.layers[0].attention_partial(x_SD)


def _next_layer(layer: LayerShard, following: LayerShard, x_SD: Tensor, sum_SD: Tensor) -> tuple[Tensor, Tensor]:
    """Close one layer and begin the next: no communication lies between."""
    x_SD = layer.after_mlp(x_SD, sum_SD)
    return x_SD, following.attention_partial(x_SD)


def _finish(shard: TensorShard, x_SD: Tensor, sum_SD: Tensor) -> tuple[Tensor, Tensor]:
    """(normalised content rows [T, D], logits [classes])."""
    x_SD = shard.model.norm(shard.layers[-1].after_mlp(x_SD, sum_SD))
    return x_SD[1:], shard.model.classify(x_SD[:1])[0]


def _split(block: Block, rank: int, world: int) -> LayerShard:
    """Rank's heads and MLP columns of one block."""
    hidden = block.attn.q.in_features
    with torch.device("meta"):  # every weight is replaced by a view below, so none is allocated here
        attn, mlp = Attention(hidden, block.attn.heads // world), Mlp(hidden, block.mlp.fc1.out_features)
    for part in ("q", "k", "v"):
        setattr(attn, part, _outputs(getattr(block.attn, part), rank, world))
    attn.proj = _inputs(block.attn.proj, rank, world)
    mlp.fc1, mlp.fc2 = _outputs(block.mlp.fc1, rank, world), _inputs(block.mlp.fc2, rank, world)
    return LayerShard(block, attn, mlp)


def _outputs(linear: nn.Linear, rank: int, world: int) -> nn.Linear:
    """A layer that computes rank's share of the outputs; a view."""
    count = linear.out_features // world
    part = nn.Linear(linear.in_features, count, device="meta")
    part.weight = _view(linear.weight, 0, rank * count, count)
    part.bias = _view(linear.bias, 0, rank * count, count)
    return part


def _inputs(linear: nn.Linear, rank: int, world: int) -> nn.Linear:
    """A layer that sums over rank's share of the inputs, without bias (it is added once, after the sum); a view."""
    count = linear.in_features // world
    part = nn.Linear(count, linear.out_features, bias=False, device="meta")
    part.weight = _view(linear.weight, 1, rank * count, count)
    return part


def _view(parameter: Tensor, dim: int, start: int, count: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach().narrow(dim, start, count), requires_grad=False)
