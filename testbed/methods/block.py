"""Block parallelism of DeTransformer (docs/baselines.md, section 3.7): features are split, and most layers need no
communication.

The layers form ``blocks`` groups. In each, all layers but the last are *decoupled*: device i has a cut of d of the D
features for all rows, and on it a narrower layer of its own, d -> D in queries, keys and values over all heads, D -> d
after attention, d -> 4 D -> d in the MLP, norms over d. The last is an *original* layer on all features, which are
exchanged before it:

ag  the cuts are gathered, and each device computes the original layer for all rows;
sp  an all-to-all gives each device all features of its own rows, the layer runs as in ``sequence``, an all-to-all
    gives the cuts back (not after the last layer).

This is another architecture than the plain model, and needs its own training. Here the decoupled layers' weights are
cuts of the model's (together as many, but for biases), so latency and bytes are right and answers are not: the method
is checked against its one-process form. On one device, or with as many groups as layers, nothing is decoupled.

Shape suffixes: S sequence, P own rows, D hidden, d own features.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testbed.comm.group import Group, even_shares
from testbed.compressed_collectives import CodedGroup, Relay, gathered_bits
from testbed.device.clock import DeviceClock
from testbed.errors import ConfigError
from testbed.methods.base import CodedMethod
from testbed.methods.sequence import SequenceShard, check_rows, reorders, segment_macs, simulate_layer
from testbed.methods.tensor import linear_view, parameter_view
from testbed.models.shape import ModelShape
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer
from testbed.output import Output

SYNCS = ("ag", "sp")


@dataclass(frozen=True)
class BlockShard:
    """The plain model with its rows, the features of every rank, and this rank's decoupled layers (None: original)."""

    own: SequenceShard
    cuts: list[slice]
    decoupled: list[Block | None]

    @property
    def cut(self) -> slice:
        """This rank's features."""
        return self.cuts[self.own.rank]

    def embed(self, inputs: Tensor) -> Tensor:
        """Own features of all rows, [S, d]."""
        model, cut = self.own.model, self.cut
        content = linear_view(model.patch_embed, outputs=cut)(model.patches(inputs))[0] + model.position[0, 1:, cut]
        return torch.cat([model.embed_class()[0, :, cut], content])

    def original(self, block: Block, gathered: Tensor) -> Tensor:
        """An original layer for all rows, [S, D], from everyone's features one after another."""
        cuts_Sd = gathered.split([self.own.model.shape.sequence * width for width in _widths(self.cuts)])
        x_SD = torch.cat([x.unflatten(0, (-1, width)) for x, width in zip(cuts_Sd, _widths(self.cuts), strict=True)], 1)
        return block(x_SD[None])[0]

    def finish(self, x_SD: Tensor) -> tuple[Tensor, Tensor]:
        """(normalized content rows [T, D], logits [classes])."""
        x_SD = self.own.model.norm(x_SD)
        return x_SD[1:], self.own.model.classify(x_SD[:1])[0]


class BlockParallel(CodedMethod):
    """Features split; one exchange for each of ``blocks`` groups of layers, by ``sync``: ag or sp."""

    name: ClassVar[str] = "block"

    def __init__(self, blocks: int = 4, sync: str = "ag", codec: str = "fp32"):
        super().__init__(codec)
        if sync not in SYNCS:
            raise ConfigError("block.sync", sync, f"allowed: {', '.join(SYNCS)}")
        self.blocks, self.sync, self.exact = blocks, sync, False

    def _variant(self) -> list[str]:
        return [f"Nb={self.blocks}", *([] if self.sync == "ag" else [self.sync])]

    def check(self, shape: ModelShape, world: int) -> None:
        """Groups must divide the layers; each device needs a feature and a row; shares are equal."""
        if not 1 <= self.blocks <= shape.layers or shape.layers % self.blocks:
            counts = ", ".join(str(n) for n in range(1, shape.layers + 1) if shape.layers % n == 0)
            raise ConfigError("block.blocks", self.blocks, f"must divide {shape.layers} layers; allowed: {counts}")
        if world > shape.hidden:
            raise ConfigError("devices", world, f"block needs 1 to {shape.hidden} devices, one feature each at least")
        if self.sync == "sp":
            check_rows(self.name, shape, world)
        if self.speeds:
            raise ConfigError("partition", "speed", "must be equal for block, which cuts the features into equal parts")

    def shard(self, model: VisionTransformer, rank: int, world: int) -> BlockShard:
        """The model, and views of its weights for decoupled layers."""
        self.check(model.shape, world)
        cuts = _cuts(model.shape, world)
        own = SequenceShard(model, even_shares(model.shape.sequence, world), rank)
        layers = enumerate(cast(Iterable[Block], model.blocks))
        decoupled = [
            None if self._is_original(model.shape, i) else _decoupled(block, cuts[rank]) for i, block in layers
        ]
        return BlockShard(own, cuts, decoupled)

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: BlockShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. ag: every rank has all content tokens and the logits; sp: as ``sequence``."""
        own, shape = shard.own, shard.own.model.shape
        coded = CodedGroup(group, clock, self.codec)
        embed, decoupled, original = self._layer_macs(shape, group.rank, group.world)
        x = clock.run("compute", embed, partial(shard.embed, inputs))
        for index, layer in enumerate(shard.decoupled):
            if layer is not None:
                x = clock.run("compute", decoupled, partial(_run, layer, x))
                continue
            block = cast(Block, own.model.blocks[index])
            if self.sync == "ag":
                gathered = coded.all_gather(x.flatten(), [x.shape[0] * width for width in _widths(shard.cuts)], True)
                x = clock.run("compute", original, partial(shard.original, block, gathered))
                x = x if index == shape.layers - 1 else x[:, shard.cut]
            else:
                x_PD = torch.cat(coded.all_to_all(x.split(own.rows), _shapes(own.rows[own.rank], shard.cuts)), dim=1)
                layer_PD = partial(own.layer, block, reorders(shape, own.rows[own.rank]))
                x = clock.run("compute", original, partial(layer_PD, coded.all_gather(x_PD, own.rows)))
                if index < shape.layers - 1:
                    width = _widths(shard.cuts)[own.rank]
                    parts = [x[:, cut] for cut in shard.cuts]
                    x = torch.cat(coded.all_to_all(parts, [(rows, width) for rows in own.rows]))
        if self.sync == "ag":
            hidden_TD, logits = clock.run("compute", shape.head_macs(), partial(shard.finish, x))
            return Output(hidden_TD, 0, logits, messages=coded.messages)
        head = 0 if own.start else shape.head_macs()
        hidden_PD, logits = clock.run("compute", head, partial(own.finish, x))
        return Output(hidden_PD, max(own.start - 1, 0), logits, messages=coded.messages)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """ag: the others' features of all rows, for each group.

        sp: the others' features of own rows, then all other rows (``sequence``), for each group; after all but the last
        group own features of the others' rows.
        """
        widths, rows = _widths(_cuts(shape, world)), even_shares(shape.sequence, world)
        if self.sync == "ag":
            gathered = gathered_bits(self.codec, [shape.sequence * width for width in widths], 1)
            return tuple(self.blocks * bits for bits in gathered)
        gathered = gathered_bits(self.codec, rows, shape.hidden)
        bits = []
        for rank in range(world):
            others = [peer for peer in range(world) if peer != rank]
            to_rows = sum(self.codec.encoded_bytes(rows[rank] * widths[peer]) for peer in others)
            to_cuts = sum(self.codec.encoded_bytes(rows[peer] * widths[rank]) for peer in others)
            bits.append(self.blocks * (8 * to_rows + gathered[rank]) + (self.blocks - 1) * 8 * to_cuts)
        return tuple(bits)

    def messages(self, shape: ModelShape, world: int) -> int:
        """One from everybody for each group; sp: two, and one more where cuts go back."""
        exchanges = self.blocks if self.sync == "ag" else 3 * self.blocks - 1
        return exchanges * (world - 1)

    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """Decoupled layers on own features of all rows; original layers whole (ag), or for own rows (sp)."""
        embed, decoupled, original = self._layer_macs(shape, rank, world)
        head = shape.head_macs() if self.sync == "ag" or rank == 0 else 0
        return embed + (shape.layers - self.blocks) * decoupled + self.blocks * original + head

    def _layer_macs(self, shape: ModelShape, rank: int, world: int) -> tuple[int, int, int]:
        """(embedding, a decoupled layer, an original layer) of one rank."""
        s, width = shape.sequence, _widths(_cuts(shape, world))[rank]
        decoupled = s * width * (4 * shape.query_width + 2 * shape.mlp_hidden) + shape.attend_macs(s, s)
        rows, row = (even_shares(s, world), rank) if self.sync == "sp" else ([s], 0)
        return shape.tokens * shape.patch_values * width, decoupled, segment_macs(shape, rows, row).layer

    def _is_original(self, shape: ModelShape, layer: int) -> bool:
        return (layer + 1) % (shape.layers // self.blocks) == 0

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: the one-process form of the architecture, with all cuts in one tensor."""
        relay, rows = Relay(self.codec, world, sent), even_shares(model.shape.sequence, world)
        cuts = _cuts(model.shape, world)
        x_SD = model.embed(inputs)[0]
        for index, block in enumerate(cast(Iterable[Block], model.blocks)):
            if not self._is_original(model.shape, index):
                x_SD = torch.cat([_decoupled_form(block, x_SD, cut) for cut in cuts], dim=1)
            elif self.sync == "ag":
                carried = relay.all_gather([x_SD[:, cut].flatten() for cut in cuts])
                x_SD = torch.cat([x.view(len(x_SD), -1) for x in carried], dim=1)
                x_SD = block(x_SD[None])[0]
            else:
                parts = relay.all_to_all([x_SD[:, cut].split(rows) for cut in cuts])
                parts = simulate_layer(block, [torch.cat(part, dim=1) for part in parts], relay)
                if index < model.shape.layers - 1:
                    back = relay.all_to_all([[part[:, cut] for cut in cuts] for part in parts])
                    x_SD = torch.cat([torch.cat(features) for features in back], dim=1)
                else:
                    x_SD = torch.cat(parts)
        x_SD = model.norm(x_SD)
        return x_SD[1:], model.classify(x_SD[:1])[0]


def _cuts(shape: ModelShape, world: int) -> list[slice]:
    """Every rank's features, as even as whole ones allow."""
    stops = list(itertools.accumulate(even_shares(shape.hidden, world)))
    return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def _widths(cuts: list[slice]) -> list[int]:
    return [cut.stop - cut.start for cut in cuts]


def _shapes(rows: int, cuts: list[slice]) -> list[tuple[int, int]]:
    return [(rows, width) for width in _widths(cuts)]


def _run(layer: Block, x_Sd: Tensor) -> Tensor:
    return layer(x_Sd[None])[0]


def _decoupled(block: Block, cut: slice) -> Block:
    """A layer on a cut of the features: a Block whose weights are views of this one's."""
    width, scaled = cut.stop - cut.start, block.ls1 is not None
    with torch.device("meta"):  # every weight is replaced by a view below, so none is allocated here
        part = Block(width, block.attn.heads, block.mlp.fc1.out_features, block.norm1.eps, scaled)
    part.mlp.approximate = block.mlp.approximate
    for name in ("q", "k", "v"):
        setattr(part.attn, name, linear_view(getattr(block.attn, name), inputs=cut))
    part.attn.proj = linear_view(block.attn.proj, outputs=cut)
    part.mlp.fc1, part.mlp.fc2 = linear_view(block.mlp.fc1, inputs=cut), linear_view(block.mlp.fc2, outputs=cut)
    for name in ("norm1", "norm2"):
        norm, whole = cast(nn.LayerNorm, getattr(part, name)), cast(nn.LayerNorm, getattr(block, name))
        norm.weight, norm.bias = parameter_view(whole.weight[cut]), parameter_view(whole.bias[cut])
    if block.ls1 is not None and block.ls2 is not None:
        part.ls1, part.ls2 = parameter_view(block.ls1[cut]), parameter_view(block.ls2[cut])
    return part


def _decoupled_form(block: Block, x_SD: Tensor, cut: slice) -> Tensor:
    """The same written out, for the simulation: [S, D] -> the cut's features after the layer."""
    attn, mlp, x_Sd = block.attn, block.mlp, x_SD[:, cut]
    scale1, scale2 = (1.0 if scale is None else scale[cut] for scale in (block.ls1, block.ls2))
    h_Sd = F.layer_norm(x_Sd, x_Sd.shape[1:], block.norm1.weight[cut], block.norm1.bias[cut], block.norm1.eps)
    sides = [F.linear(h_Sd, side.weight[:, cut], side.bias)[None] for side in (attn.q, attn.k, attn.v)]
    mixed_SD = attn.mix(*map(attn.split_heads, sides))[0]
    x_Sd = x_Sd + scale1 * F.linear(mixed_SD, attn.proj.weight[cut], attn.proj.bias[cut])
    h_Sd = F.layer_norm(x_Sd, x_Sd.shape[1:], block.norm2.weight[cut], block.norm2.bias[cut], block.norm2.eps)
    inner = F.gelu(F.linear(h_Sd, mlp.fc1.weight[:, cut], mlp.fc1.bias), approximate=mlp.approximate)
    return x_Sd + scale2 * F.linear(inner, mlp.fc2.weight[cut], mlp.fc2.bias[cut])
