"""Block parallelism of DeTransformer (Wei et al., DATE 2024; docs/baselines.md, section 3.7): features are split.

The layers form ``block.blocks`` groups. All layers of a group but the last are *decoupled*: device i has d of the D
features of all rows, and runs a narrower layer on them without communication. That layer has queries, keys and values
d -> D over all heads, an output projection D -> d, an MLP d -> 4 D -> d, and norms of width d. The last layer of a
group is an *original* layer on all features. Before it the features are exchanged, as ``block.sync`` says:

ag  The features are gathered. Each device computes the original layer for all rows.
sp  An all-to-all gives each device all features of its own rows. The layer runs as in ``sequence``. A second all-to-all
    gives the features back, except after the last layer.

This is another architecture than the plain model and needs its own training. Here the decoupled layers use slices of
the model's weights: all devices together have as many weights as the model, except for biases. Latency and bytes are
correct; the outputs are not those of the model. The method is checked against its simulation in one process. On one
device, or with as many groups as layers, no layer is decoupled.

Shape suffixes: S sequence, P own rows, D hidden, d own features.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testbed.comm.group import Group, even_shares
from testbed.comm.wire import Wire
from testbed.compressed_collectives import CompressedGroup, Relay, exchange_work, gather_work, gathered_bits
from testbed.device.clock import DeviceClock
from testbed.errors import ConfigError
from testbed.methods.base import CompressedMethod
from testbed.methods.row_parallel import RowShard, check_rows
from testbed.methods.sequence import layer_from_rows, reorders, segment_work, simulate_layer
from testbed.methods.views import linear_view, parameter_view
from testbed.models.shape import ModelShape
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import NO_WORK, Work, memory_pass

SYNCS = ("ag", "sp")


@dataclass(frozen=True)
class BlockShard:
    """The model with this rank's rows, the features of each rank, and this rank's decoupled layers.

    decoupled: by layer; None for an original layer.
    """

    row_shard: RowShard
    features: list[slice]
    decoupled: list[Block | None]

    @property
    def own(self) -> slice:
        """The features of this rank."""
        return self.features[self.row_shard.rank]

    def embed(self, inputs: Tensor) -> Tensor:
        """Own features of all rows, [S, d]."""
        model, own = self.row_shard.model, self.own
        content = linear_view(model.patch_embed, outputs=own)(model.patches(inputs))[0] + model.position[0, 1:, own]
        return torch.cat([model.embed_class()[0, :, own], content])

    def original(self, block: Block, gathered: Tensor) -> Tensor:
        """An original layer for all rows, [S, D]. gathered: the features of each rank, flat, one after another."""
        widths, rows = _widths(self.features), self.row_shard.model.shape.sequence
        parts = gathered.split([rows * width for width in widths])
        x_SD = torch.cat([part.unflatten(0, (-1, width)) for part, width in zip(parts, widths, strict=True)], dim=1)
        return block(x_SD[None])[0]


class BlockParallel(CompressedMethod):
    """Features are split. blocks: groups of layers, with one exchange each. sync: ``ag`` or ``sp``."""

    name: ClassVar[str] = "block"

    def __init__(self, blocks: int = 4, sync: str = "ag", codec: str = "fp32"):
        super().__init__(codec)
        if sync not in SYNCS:
            raise ConfigError("block.sync", sync, f"allowed: {', '.join(SYNCS)}")
        self.blocks, self.sync, self.exact = blocks, sync, False

    def _variant(self) -> list[str]:
        return [f"Nb={self.blocks}", *([] if self.sync == "ag" else [self.sync])]

    def check(self, shape: ModelShape, world: int) -> None:
        """Raise ConfigError unless groups divide the layers, each device has a feature and a row, shares are equal."""
        if not 1 <= self.blocks <= shape.layers or shape.layers % self.blocks:
            counts = ", ".join(str(n) for n in range(1, shape.layers + 1) if shape.layers % n == 0)
            raise ConfigError("block.blocks", self.blocks, f"must divide {shape.layers} layers; allowed: {counts}")
        if world > shape.hidden:
            raise ConfigError("devices", world, f"block needs 1 to {shape.hidden} devices, one feature each at least")
        if self.sync == "sp":
            check_rows(self.name, shape, world)
        if self.speeds:
            raise ConfigError("partition", "speed", "must be equal for block, which splits the features equally")

    def shard(self, model: VisionTransformer, rank: int, world: int) -> BlockShard:
        """The model, and views of its weights for decoupled layers."""
        self.check(model.shape, world)
        features = _features(model.shape, world)
        row_shard = RowShard(model, even_shares(model.shape.sequence, world), rank)
        layers = enumerate(cast(Iterable[Block], model.blocks))
        decoupled = [
            None if self._is_original(model.shape, i) else _decoupled(block, features[rank]) for i, block in layers
        ]
        return BlockShard(row_shard, features, decoupled)

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: BlockShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. ag: each rank has all content tokens and the logits. sp: as ``sequence``."""
        row_shard, shape = shard.row_shard, shard.row_shard.model.shape
        compressed = CompressedGroup(group, clock, self.codec)
        embed, decoupled, original = self._segment_work(shape, group.rank, group.world)
        x = clock.run("compute", embed, partial(shard.embed, inputs))
        for index, layer in enumerate(shard.decoupled):
            if layer is not None:
                x = clock.run("compute", decoupled, partial(_run, layer, x))
                continue
            block, last = cast(Block, row_shard.model.blocks[index]), index == shape.layers - 1
            if self.sync == "ag":
                sizes = [len(x) * width for width in _widths(shard.features)]
                gathered = compressed.all_gather(x.flatten(), sizes, replicate=True)
                x = clock.run("compute", original, partial(shard.original, block, gathered))
                x = x if last else x[:, shard.own]
            else:
                all_SD = compressed.all_gather(_features_to_rows(compressed, shard, x), row_shard.rows)
                reorder = reorders(shape, row_shard.rows[row_shard.rank])
                x = clock.run("compute", original, partial(layer_from_rows, row_shard, block, reorder, all_SD))
                x = x if last else _rows_to_features(compressed, shard, x)
        if self.sync == "sp":
            return row_shard.run_head(clock, x, compressed.messages)
        end = shape.norm(shape.sequence) + shape.head()
        hidden_TD, logits = clock.run("compute", end, partial(row_shard.model.outputs, x))
        return Output(hidden_TD, 0, logits, messages=compressed.messages)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """ag: in each group, the other ranks' features of all rows.

        sp: in each group, the other ranks' features of own rows, then all other rows as in ``sequence``; in all groups
        but the last, own features of the other ranks' rows.
        """
        widths, rows = _widths(_features(shape, world)), even_shares(shape.sequence, world)
        if self.sync == "ag":
            gathered = gathered_bits(self.codec, [shape.sequence * width for width in widths], 1)
            return tuple(self.blocks * bits for bits in gathered)
        gathered = gathered_bits(self.codec, rows, shape.hidden)
        bits = []
        for rank in range(world):
            others = [peer for peer in range(world) if peer != rank]
            to_rows = sum(self.codec.encoded_bytes(rows[rank] * widths[peer]) for peer in others)
            to_features = sum(self.codec.encoded_bytes(rows[peer] * widths[rank]) for peer in others)
            bits.append(self.blocks * (8 * to_rows + gathered[rank]) + (self.blocks - 1) * 8 * to_features)
        return tuple(bits)

    def messages(self, shape: ModelShape, world: int) -> int:
        """From each other rank one in each group. sp: two, and a third one where features are given back."""
        exchanges = self.blocks if self.sync == "ag" else 3 * self.blocks - 1
        return exchanges * (world - 1)

    def rounds(self, shape: ModelShape, world: int, wire: Wire) -> int:
        """The exchanges of each group."""
        rows, widths = even_shares(shape.sequence, world), _widths(_features(shape, world))
        if self.sync == "ag":
            return self.blocks * wire.rounds(self.codec.encoded_bytes(shape.sequence * widths[0]), world)
        part, own = (self.codec.encoded_bytes(rows[0] * width) for width in (widths[0], shape.hidden))
        return (2 * self.blocks - 1) * wire.rounds(part, world) + self.blocks * wire.rounds(own, world)

    def work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """Decoupled layers on own features of all rows; original layers for all rows (ag) or for own rows (sp)."""
        embed, decoupled, original = self._segment_work(shape, rank, world)
        rows = even_shares(shape.sequence, world) if self.sync == "sp" else [shape.sequence] * world
        head = shape.norm(rows[rank]) + (shape.head() if self.sync == "ag" or rank == 0 else NO_WORK)
        layers = (shape.layers - self.blocks) * decoupled + self.blocks * original
        return embed + layers + head + self._codec_work(shape, rank, world)

    def _codec_work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """What encoding and decoding costs one rank in all groups."""
        widths, rows = _widths(_features(shape, world)), even_shares(shape.sequence, world)
        if self.sync == "ag":
            sizes = [shape.sequence * width for width in widths]
            return self.blocks * gather_work(self.codec, sizes, 1, rank, replicate=True)
        of_others = [count * widths[rank] for count in rows]  # own features of each rank's rows
        of_own = [rows[rank] * width for width in widths]  # each rank's features of own rows
        to_rows = exchange_work(self.codec, of_others, of_own, rank)
        to_features = exchange_work(self.codec, of_own, of_others, rank)
        gather = gather_work(self.codec, rows, shape.hidden, rank)
        return self.blocks * (to_rows + gather) + (self.blocks - 1) * to_features

    def _segment_work(self, shape: ModelShape, rank: int, world: int) -> tuple[Work, Work, Work]:
        """(the embedding, a decoupled layer, an original layer) of one rank."""
        s, width = shape.sequence, _widths(_features(shape, world))[rank]
        narrow = replace(shape, hidden=width, head_width=shape.query_width // shape.heads)
        own = even_shares(s, world)[rank] if self.sync == "sp" else s
        join = memory_pass(2 * s * shape.hidden) if self.sync == "ag" else NO_WORK  # the features of all devices
        return narrow.embed(shape.tokens), narrow.layer(s), join + segment_work(shape, own).layer

    def _is_original(self, shape: ModelShape, layer: int) -> bool:
        return (layer + 1) % (shape.layers // self.blocks) == 0

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: the features of all ranks are in one tensor."""
        relay, rows = Relay(self.codec, world, sent), even_shares(model.shape.sequence, world)
        features = _features(model.shape, world)
        x_SD = model.embed(inputs)[0]
        for index, block in enumerate(cast(Iterable[Block], model.blocks)):
            if not self._is_original(model.shape, index):
                x_SD = torch.cat([_simulate_decoupled(block, x_SD, each) for each in features], dim=1)
            elif self.sync == "ag":
                carried = relay.all_gather([x_SD[:, each].flatten() for each in features])
                x_SD = torch.cat([x.view(len(x_SD), -1) for x in carried], dim=1)
                x_SD = block(x_SD[None])[0]
            else:
                parts = relay.all_to_all([x_SD[:, each].split(rows) for each in features])
                parts = simulate_layer(block, [torch.cat(part, dim=1) for part in parts], relay)
                if index < model.shape.layers - 1:
                    back = relay.all_to_all([[part[:, each] for each in features] for part in parts])
                    x_SD = torch.cat([torch.cat(of_rank) for of_rank in back], dim=1)
                else:
                    x_SD = torch.cat(parts)
        return model.outputs(x_SD)


def _features(shape: ModelShape, world: int) -> list[slice]:
    """The features of each rank; their counts differ by one at most."""
    stops = list(itertools.accumulate(even_shares(shape.hidden, world)))
    return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def _widths(features: list[slice]) -> list[int]:
    return [each.stop - each.start for each in features]


def _features_to_rows(compressed: CompressedGroup, shard: BlockShard, x_Sd: Tensor) -> Tensor:
    """All-to-all from own features of all rows [S, d] to all features of own rows [P, D]."""
    rows, rank = shard.row_shard.rows, shard.row_shard.rank
    shapes = [(rows[rank], width) for width in _widths(shard.features)]
    return torch.cat(compressed.all_to_all(x_Sd.split(rows), shapes), dim=1)


def _rows_to_features(compressed: CompressedGroup, shard: BlockShard, x_PD: Tensor) -> Tensor:
    """All-to-all from all features of own rows [P, D] to own features of all rows [S, d]."""
    width = _widths(shard.features)[shard.row_shard.rank]
    parts = [x_PD[:, each] for each in shard.features]
    return torch.cat(compressed.all_to_all(parts, [(count, width) for count in shard.row_shard.rows]))


def _run(layer: Block, x_Sd: Tensor) -> Tensor:
    return layer(x_Sd[None])[0]


def _decoupled(block: Block, features: slice) -> Block:
    """A decoupled layer: a Block on these features whose weights are views of ``block``'s."""
    width, scaled = features.stop - features.start, block.ls1 is not None
    with torch.device("meta"):  # every weight is replaced by a view below, so none is allocated here
        part = Block(width, block.attn.heads, block.mlp.fc1.out_features, block.norm1.eps, scaled)
    part.mlp.approximate = block.mlp.approximate
    for name in ("q", "k", "v"):
        setattr(part.attn, name, linear_view(getattr(block.attn, name), inputs=features))
    part.attn.proj = linear_view(block.attn.proj, outputs=features)
    part.mlp.fc1 = linear_view(block.mlp.fc1, inputs=features)
    part.mlp.fc2 = linear_view(block.mlp.fc2, outputs=features)
    for name in ("norm1", "norm2"):
        norm, whole = cast(nn.LayerNorm, getattr(part, name)), cast(nn.LayerNorm, getattr(block, name))
        norm.weight, norm.bias = parameter_view(whole.weight[features]), parameter_view(whole.bias[features])
    if block.ls1 is not None and block.ls2 is not None:
        part.ls1, part.ls2 = parameter_view(block.ls1[features]), parameter_view(block.ls2[features])
    return part


def _simulate_decoupled(block: Block, x_SD: Tensor, features: slice) -> Tensor:
    """A decoupled layer written out, independent of ``_decoupled``: [S, D] -> these features of its output, [S, d]."""
    attn, mlp, x_Sd = block.attn, block.mlp, x_SD[:, features]
    scale1, scale2 = (1.0 if scale is None else scale[features] for scale in (block.ls1, block.ls2))
    norm1, norm2 = block.norm1, block.norm2
    h_Sd = F.layer_norm(x_Sd, x_Sd.shape[1:], norm1.weight[features], norm1.bias[features], norm1.eps)
    sides = [F.linear(h_Sd, side.weight[:, features], side.bias)[None] for side in (attn.q, attn.k, attn.v)]
    mixed_SD = attn.mix(*map(attn.split_heads, sides))[0]
    x_Sd = x_Sd + scale1 * F.linear(mixed_SD, attn.proj.weight[features], attn.proj.bias[features])
    h_Sd = F.layer_norm(x_Sd, x_Sd.shape[1:], norm2.weight[features], norm2.bias[features], norm2.eps)
    inner = F.gelu(F.linear(h_Sd, mlp.fc1.weight[:, features], mlp.fc1.bias), approximate=mlp.approximate)
    return x_Sd + scale2 * F.linear(inner, mlp.fc2.weight[features], mlp.fc2.bias[features])
