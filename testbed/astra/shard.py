"""What one rank of ASTRA holds, and the segments of its forward pass.

Shape suffixes: P own tokens, R received tokens, Q own rows (class or anchor copies first), D hidden, I indices of a
token, J key/value heads, H heads, K head width, W numbers of a key and a value.
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
from testbed.astra.quantized import Quantized, split_keys_values, to_quantize
from testbed.astra.quantizer import Quantizer
from testbed.astra.remote_keys import Expansion, Keys, expansions
from testbed.models.decoder import Decoder, DecoderBlock
from testbed.models.partial_attention import PartialAttention, attend_part, merge
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer


class Encoded(NamedTuple):
    """One chunk: indices [P, I], the message that packs them, and keys and values [P, W] if these were quantized."""

    codes_PI: Tensor
    message: Tensor
    kv_PW: Tensor | None


@dataclass(frozen=True)
class AstraShard:
    """The whole model and one rank's part in running it. quantizer: None on one device, which sends nothing."""

    blocks: list[Block | DecoderBlock]
    rows: Rows
    split: Split
    quantizer: Quantizer | None
    expansions: list[Expansion]
    quantized: Quantized
    positions: list[Tensor]  # [R], of the tokens of each received chunk

    @classmethod
    def of(
        cls,
        model: VisionTransformer | Decoder,
        split: Split,
        quantizer: Quantizer | None,
        optimizations: Optimizations,
        quantized: Quantized,
        cache_dir: Path | None,
    ) -> AstraShard:
        """cache_dir: the folder of lookup tables. Raises ValueError where the model does not allow an optimization."""
        blocks = list(cast(Iterable[Block | DecoderBlock], model.blocks))
        expand = [] if quantizer is None else expansions(model, quantizer, optimizations, quantized, cache_dir)
        spans = map(split.received_positions, range(split.chunks))
        positions = [torch.cat([torch.arange(0), *(torch.arange(*span) for span in chunk)]) for chunk in spans]
        return cls(blocks, rows_of(model, split), split, quantizer, expand, quantized, positions)

    def encode(self, layer: int, chunk: int, x_QD: Tensor) -> Encoded:
        """Quantize the tokens of a chunk. x_QD: the chunk's rows at the layer's input; those not sent come first."""
        assert self.quantizer is not None
        sent = self.split.sent_tokens(self.split.rank)[chunk]
        own_PW = to_quantize(self.blocks[layer], x_QD[None, len(x_QD) - sent :], self.quantized)[0]
        codes_PI = self.quantizer.encode(layer, own_PW)
        kv_PW = own_PW if self.quantized == "keys_values" else None
        return Encoded(codes_PI, pack(codes_PI, index_bits(self.quantizer.codebook_size)), kv_PW)

    def keys(self, layer: int, chunk: int, messages: tuple[Tensor, ...]) -> Keys:
        """Keys and values of a received chunk. messages: those of all ranks, in rank order."""
        assert self.quantizer is not None
        bits, indices = index_bits(self.quantizer.codebook_size), self.quantizer.indices
        codes = [
            unpack(messages[rank], self.split.sent_tokens(rank)[chunk], indices, bits) for rank in self.split.sources
        ]
        return self.expansions[layer].keys(torch.cat(codes), self.positions[chunk])

    def local(self, layer: int, chunks: list[Tensor], encoded: list[Encoded]) -> tuple[Tensor, PartialAttention]:
        """(queries [1, H, Q, K] of own rows, their attention to each other).

        chunks: own rows at the layer's input. encoded: the same chunks quantized; keys and values in them are reused.
        """
        attn, positions = self.blocks[layer].attn, self.rows.positions
        h_BQD = self.blocks[layer].norm1(torch.cat(chunks)[None])
        reused = [part.kv_PW for part in encoded if part.kv_PW is not None]
        k_BJQK, v_BJQK = attn.pre_rope_keys_values(h_BQD[:, : h_BQD.shape[1] - sum(map(len, reused))])
        if reused:
            reused_k_BJPK, reused_v_BJPK = split_keys_values(torch.cat(reused)[None], k_BJQK.shape[1])
            k_BJQK, v_BJQK = torch.cat([k_BJQK, reused_k_BJPK], dim=2), torch.cat([v_BJQK, reused_v_BJPK], dim=2)
        q_BHQK = attn.query(h_BQD, positions)
        return q_BHQK, attend_part(q_BHQK, attn.apply_rotary(k_BJQK, positions), v_BJQK, self.rows.visible)

    def mix(self, parts: list[PartialAttention]) -> Tensor:
        """Merge partial attentions: own rows' attention to all keys, [Q, H*K], before the output projection."""
        return merge(parts).mixed()[0]

    def finish(self, layer: int, x_QD: Tensor, mixed_QD: Tensor) -> Tensor:
        """The given own rows after the layer; after the last layer, normalized too."""
        x_QD = self.blocks[layer].finish(x_QD[None], mixed_QD[None])[0]
        return self.rows.model.norm(x_QD) if layer + 1 == len(self.blocks) else x_QD
