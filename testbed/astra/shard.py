"""What one rank of ASTRA holds, and the segments of its forward pass.

Shape suffixes: P own tokens, R received tokens, Q own rows (the class copy first), D hidden, G groups, H heads,
K head width, U keys, W numbers of a key and a value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from testbed.astra.bit_packing import index_bits, pack, unpack
from testbed.astra.costs import Split
from testbed.astra.local_rows import Rows, rows_of
from testbed.astra.optimizations import Optimizations
from testbed.astra.quantized import Quantized, apart, to_quantize
from testbed.astra.quantizer import Quantizer
from testbed.astra.remote_keys import Expansion, Keys, expansions
from testbed.models.decoder import Decoder, DecoderBlock
from testbed.models.partial_attention import PartialAttention, attend_part, merge
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer


class Encoded(NamedTuple):
    """A chunk's indices [P, G], the same as a message, and its keys and values [P, W] if these were quantized."""

    codes_PG: Tensor
    message: Tensor
    kv_PW: Tensor | None


@dataclass(frozen=True)
class AstraShard:
    """The whole model, and what one rank does with it. quantizer: None on one device, which sends nothing."""

    blocks: list[Block | DecoderBlock]
    rows: Rows
    split: Split
    quantizer: Quantizer | None
    expansions: list[Expansion]
    quantized: Quantized
    positions: list[Tensor]  # [R] of each received chunk

    @classmethod
    def of(
        cls,
        model: VisionTransformer | Decoder,
        split: Split,
        quantizer: Quantizer | None,
        optimizations: Optimizations,
        quantized: Quantized,
        cache: Path | None,
    ) -> AstraShard:
        """cache: the folder of tables. Raises ValueError where the model does not allow a speed-up."""
        blocks = list(cast(Iterable[Block | DecoderBlock], model.blocks))
        ways = [] if quantizer is None else expansions(model, quantizer, optimizations, quantized, cache)
        spans = map(split.received_positions, range(split.chunks))
        positions = [torch.cat([torch.arange(0), *(torch.arange(*span) for span in chunk)]) for chunk in spans]
        return cls(blocks, rows_of(model, split), split, quantizer, ways, quantized, positions)

    def encode(self, layer: int, chunk: int, x_QD: Tensor) -> Encoded:
        """The codes of a chunk's tokens."""
        assert self.quantizer is not None
        sent = self.split.sent_tokens(self.split.rank)[chunk]
        own_PW = to_quantize(self.blocks[layer], x_QD[None, len(x_QD) - sent :], self.quantized)[0]
        codes_PG = self.quantizer.encode(layer, own_PW)
        kept = own_PW if self.quantized == "keys_values" else None
        return Encoded(codes_PG, pack(codes_PG, index_bits(self.quantizer.codebook_size)), kept)

    def keys(self, layer: int, chunk: int, messages: tuple[Tensor, ...]) -> Keys:
        """Of a received chunk, from everyone's messages."""
        assert self.quantizer is not None
        bits, indices = index_bits(self.quantizer.codebook_size), self.quantizer.indices
        codes = [
            unpack(messages[rank], self.split.sent_tokens(rank)[chunk], indices, bits) for rank in self.split.sources
        ]
        return self.expansions[layer].keys(torch.cat(codes), self.positions[chunk])

    def local(self, layer: int, chunks: list[Tensor], encoded: list[Encoded]) -> tuple[Tensor, PartialAttention]:
        """(queries [1, H, Q, K] of own rows, their attention to each other)."""
        attn, positions = self.blocks[layer].attn, self.rows.positions
        h_BQD = self.blocks[layer].norm1(torch.cat(chunks)[None])
        known = [part.kv_PW for part in encoded if part.kv_PW is not None]
        k, v = attn.pre_rope_keys_values(h_BQD[:, : h_BQD.shape[1] - sum(map(len, known))])
        if known:
            known_k, known_v = apart(torch.cat(known)[None], k.shape[1])
            k, v = torch.cat([k, known_k], dim=2), torch.cat([v, known_v], dim=2)
        q_BHQK = attn.query(h_BQD, positions)
        return q_BHQK, attend_part(q_BHQK, attn.apply_rotary(k, positions), v, self.rows.visible)

    def mix(self, parts: list[PartialAttention]) -> Tensor:
        """Own rows' attention to everything, [Q, H*K], before the output projection."""
        return merge(parts).mixed()[0]

    def finish(self, layer: int, x_QD: Tensor, mixed_QD: Tensor) -> Tensor:
        """Some own rows after the layer, normalized after the last one."""
        x_QD = self.blocks[layer].finish(x_QD[None], mixed_QD[None])[0]
        return self.rows.model.norm(x_QD) if layer + 1 == len(self.blocks) else x_QD
