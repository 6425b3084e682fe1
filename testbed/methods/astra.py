"""ASTRA: sequence parallelism whose devices exchange codeword indices only (Liu et al., arXiv 2505.19342; PAPER.md).

Each device owns consecutive content tokens and its own copy of the class token. Per layer it encodes its content rows,
sends the packed indices to all others, and attends to its own rows at full precision and to the others' decoded ones,
in one softmax. The class copies stay at home until they are averaged before the head.

Shape suffixes: P own content tokens, R other devices' content tokens, Q = 1 + P own rows (the class copy first),
D hidden, G groups, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor

from testbed.astra.codes import index_bits, pack, packed_bytes, unpack
from testbed.astra.quantizer import Quantizer, check_quantizer
from testbed.clock import DeviceClock
from testbed.comm.group import Group, even_shares
from testbed.errors import ConfigError
from testbed.methods.base import FLOAT_BITS, Method, Output
from testbed.methods.single import Single
from testbed.models.shape import ModelShape
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer

Projected = tuple[Tensor, Tensor, Tensor]  # queries, keys, values, each [1, H, Q, K]


@dataclass(frozen=True)
class LayerMacs:
    """One rank's multiply-accumulates of one layer, by segment."""

    encode: int
    project: int  # queries, keys and values of own rows
    rest: int  # keys and values of received rows, attention, MLP


@dataclass(frozen=True)
class AstraShard:
    """The whole model, and every rank's number of content tokens."""

    model: VisionTransformer
    shares: list[int]
    rank: int

    def embed(self, inputs: Tensor) -> Tensor:
        """Own rows [Q, D]."""
        start = sum(self.shares[: self.rank])
        content = self.model.embed_content(inputs, start, start + self.shares[self.rank])
        return torch.cat([self.model.embed_class(), content], dim=1)[0]

    def project(self, block: Block, x_QD: Tensor) -> Projected:
        """Queries, keys and values of own rows."""
        h_BQD = block.norm1(x_QD[None])
        return block.attn.query(h_BQD), *block.attn.keys_values(h_BQD)

    def layer(self, block: Block, x_QD: Tensor, projected: Projected | None, remote_RD: Tensor) -> Tensor:
        """Own rows [Q, D] after the layer. ``projected`` is None where it has not been computed ahead."""
        q, local_k, local_v = self.project(block, x_QD) if projected is None else projected
        remote_k, remote_v = block.attn.keys_values(block.norm1(remote_RD[None]))
        k, v = torch.cat([local_k, remote_k], dim=-2), torch.cat([local_v, remote_v], dim=-2)
        return block.finish(x_QD[None], block.attn.mix(q, k, v))[0]

    def last_layer(self, block: Block, x_QD: Tensor, projected: Projected | None, remote_RD: Tensor) -> Tensor:
        """Own rows [Q, D] after the last layer, normalised."""
        return self.model.norm(self.layer(block, x_QD, projected, remote_RD))

    def finish(self, class_sum_D: Tensor, codes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(logits [classes] of the mean class copy, sent codes [layers, P, G])."""
        mean_D = class_sum_D / len(self.shares)
        return self.model.classify(mean_D[None])[0], torch.stack(codes)


class Astra(Method):
    """Settings: groups G, codebook_size K, and overlap.

    overlap: indices leave before the device projects its own rows and are awaited afterwards; False awaits them at
    once, as the paper does. ``attach`` the codebooks before the first forward pass on more than one device.
    """

    name: ClassVar[str] = "astra"
    exact: ClassVar[bool] = False

    def __init__(self, groups: int = 1, codebook_size: int = 1024, overlap: bool = True):
        self.groups, self.codebook_size, self.overlap = groups, codebook_size, overlap
        self._quantizer: Quantizer | None = None

    @property
    def label(self) -> str:
        """For example ``astra G=16 K=1024``."""
        return f"astra G={self.groups} K={self.codebook_size}" + ("" if self.overlap else " no overlap")

    def check(self, shape: ModelShape, world: int) -> None:
        """Groups must divide the hidden width, the codebook size be a power of two, each device have a token."""
        check_quantizer(shape.hidden, self.groups, self.codebook_size)
        if world > shape.tokens:
            raise ConfigError("devices", world, f"astra needs 1 to {shape.tokens} devices, one content token each")

    def attach(self, codebooks: Tensor) -> None:
        """Use these codebooks, float32 [layers, groups, codebook_size, hidden / groups].

        Raises ConfigError (key ``astra.codebooks``) where they differ from the settings.
        """
        quantizer = Quantizer(codebooks)
        if (quantizer.groups, quantizer.codebook_size) != (self.groups, self.codebook_size):
            allowed = f"the settings ask for {self.groups} groups of {self.codebook_size} codewords"
            raise ConfigError("astra.codebooks", list(codebooks.shape), allowed)
        self._quantizer = quantizer

    def shard(self, model: VisionTransformer, rank: int, world: int) -> AstraShard:
        """The whole model and the ranks' content tokens."""
        self.check(model.shape, world)
        return AstraShard(model, even_shares(model.shape.tokens, world), rank)

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: AstraShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Each rank has its own content tokens, and all have the logits."""
        model, shape = shard.model, shard.model.shape
        if group.world == 1:  # nothing is remote, so nothing is quantised
            return Single().forward(inputs, model, group, clock)
        quantizer = self._codebooks_for(shape)
        macs = self._layer_macs(shape, group.rank, group.world)
        own = shard.shares[group.rank]
        message_bytes = self._message_bytes(shard.shares)
        sent: list[Tensor] = []
        x_QD = clock.run("compute", shape.embed_macs(own), partial(shard.embed, inputs))
        for index, block in enumerate(cast(Iterable[Block], model.blocks)):
            codes_PG, message = clock.run("encode", macs.encode, partial(_encode, quantizer, index, x_QD))
            sent.append(codes_PG)
            if self.overlap:
                handle = group.all_gather_async(message, message_bytes)
                projected = clock.run("compute", macs.project, partial(shard.project, block, x_QD))
                messages, ahead = handle.wait(), macs.project
            else:
                messages, projected, ahead = group.all_gather(message, message_bytes), None, 0
            # Decoding copies codewords: no products, so no slot, but its real time counts where it is executed.
            remote_RD = clock.run("decode", 0, partial(_decode, quantizer, index, messages.split(message_bytes), shard))
            layer = shard.last_layer if index == shape.layers - 1 else shard.layer
            rest = macs.project + macs.rest - ahead
            x_QD = clock.run("compute", rest, partial(layer, block, x_QD, projected, remote_RD))
        class_rows = even_shares(shape.hidden, group.world)
        class_sum_D = group.all_gather(group.reduce_scatter(x_QD[0], class_rows), class_rows)
        logits, codes = clock.run("compute", shape.head_macs(), partial(shard.finish, class_sum_D, sent))
        return Output(x_QD[1:], sum(shard.shares[: group.rank]), logits, codes)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Per layer the others' indices, each message in whole bytes; at the end the class copies' average.

        The average: N - 1 copies of the rank's own share of D numbers come to be summed, then the others' sums.
        """
        if world == 1:
            return (0,)
        messages = self._message_bytes(even_shares(shape.tokens, world))
        class_rows = even_shares(shape.hidden, world)
        return tuple(
            8 * shape.layers * (sum(messages) - messages[rank])
            + shape.class_tokens * FLOAT_BITS * ((world - 1) * class_rows[rank] + shape.hidden - class_rows[rank])
            for rank in range(world)
        )

    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """As in PAPER.md, and encoding: K·P·D per layer. One device alone is ``single``."""
        if world == 1:
            return Single().macs(shape, rank, world)
        layer = self._layer_macs(shape, rank, world)
        own = even_shares(shape.tokens, world)[rank]
        layers = shape.layers * (layer.encode + layer.project + layer.rest)
        return shape.embed_macs(own) + layers + shape.head_macs()

    def _layer_macs(self, shape: ModelShape, rank: int, world: int) -> LayerMacs:
        own = even_shares(shape.tokens, world)[rank]
        remote, rows = shape.tokens - own, own + shape.class_tokens
        return LayerMacs(
            encode=self.codebook_size * own * shape.hidden,
            project=shape.query_macs(rows) + shape.key_value_macs(rows),
            rest=shape.key_value_macs(remote) + shape.attend_macs(rows, rows + remote) + shape.finish_macs(rows),
        )

    def _message_bytes(self, shares: list[int]) -> list[int]:
        """Bytes of each rank's packed indices of one layer."""
        return [packed_bytes(share * self.groups, index_bits(self.codebook_size)) for share in shares]

    def _codebooks_for(self, shape: ModelShape) -> Quantizer:
        quantizer = self._quantizer
        allowed = f"attach [{shape.layers}, {self.groups}, {self.codebook_size}, {shape.hidden // self.groups}] first"
        if quantizer is None:
            raise ConfigError("astra.codebooks", None, allowed)
        if (quantizer.layers, quantizer.hidden) != (shape.layers, shape.hidden):
            raise ConfigError("astra.codebooks", list(quantizer.codebooks_LGKd.shape), allowed)
        return quantizer


def _encode(quantizer: Quantizer, layer: int, x_QD: Tensor) -> tuple[Tensor, Tensor]:
    """(codes [P, G] of the content rows, the same as a message)."""
    codes_PG = quantizer.encode(layer, x_QD[1:])
    return codes_PG, pack(codes_PG, index_bits(quantizer.codebook_size))


def _decode(quantizer: Quantizer, layer: int, messages: tuple[Tensor, ...], shard: AstraShard) -> Tensor:
    """The other ranks' content rows [R, D] from everyone's messages."""
    bits = index_bits(quantizer.codebook_size)
    codes_RG = torch.cat(
        [
            unpack(message, share, quantizer.groups, bits)
            for rank, (message, share) in enumerate(zip(messages, shard.shares, strict=True))
            if rank != shard.rank
        ]
    )
    return quantizer.decode(layer, codes_RG)
