"""Received codes as something that own queries attend to: decoded, from tables, or a codeword at a time.

Shape suffixes: R received tokens, D hidden, G groups, H heads, J key/value heads, Q own rows, K head width, U keys.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from testbed.astra.codeword_attention import CodewordAttention
from testbed.astra.lookup_tables import CodewordTables, tables_for
from testbed.astra.optimizations import Optimizations
from testbed.astra.quantized import Quantized, apart
from testbed.astra.quantizer import Quantizer
from testbed.models.decoder import Decoder, DecoderBlock
from testbed.models.partial_attention import PartialAttention, attend_part
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer


class Keys(NamedTuple):
    """Keys and values [1, J, U, K], and numbers to be added to their scores, [1, U], or None."""

    k_BJUK: Tensor
    v_BJUK: Tensor
    bias_1U: Tensor | None = None

    def attend(self, q_BHQK: Tensor, blind: int = 0) -> PartialAttention:
        """Attention of all queries but the first ``blind`` to all of them."""
        part = attend_part(q_BHQK[:, :, blind:], self.k_BJUK, self.v_BJUK, self.bias_1U)
        return PartialAttention(F.pad(part.out, (0, 0, blind, 0)), F.pad(part.lse, (blind, 0), value=-math.inf))


class Expansion(ABC):
    """One block's way from indices to keys."""

    @abstractmethod
    def keys(self, codes_RG: Tensor, positions_R: Tensor) -> Keys:
        """Of received tokens with these indices (int64) at these positions."""


class Decoded(Expansion):
    """Codewords side by side, through the block's norm and projection, as in the paper."""

    def __init__(self, block: Block | DecoderBlock, quantizer: Quantizer, layer: int, normalized: bool):
        self.block, self.quantizer, self.layer, self.normalized = block, quantizer, layer, normalized

    def keys(self, codes_RG: Tensor, positions_R: Tensor) -> Keys:
        h_BRD = self.quantizer.decode(self.layer, codes_RG)[None]
        if not self.normalized:
            h_BRD = self.block.norm1(h_BRD)
        k_BJRK, v_BJRK = self.block.attn.pre_rope_keys_values(h_BRD)
        return Keys(self.block.attn.apply_rotary(k_BJRK, positions_R), v_BJRK)


class Copied(Expansion):
    """Codewords side by side are the keys and values."""

    def __init__(self, block: Block | DecoderBlock, quantizer: Quantizer, layer: int):
        self.block, self.quantizer, self.layer = block, quantizer, layer

    def keys(self, codes_RG: Tensor, positions_R: Tensor) -> Keys:
        k_BJRK, v_BJRK = apart(self.quantizer.decode(self.layer, codes_RG)[None], self.block.attn.key_value_heads)
        return Keys(self.block.attn.apply_rotary(k_BJRK, positions_R), v_BJRK)


class Tabled(Expansion):
    """Sums of rows computed ahead."""

    def __init__(self, tables: CodewordTables):
        self.tables = tables

    def keys(self, codes_RG: Tensor, positions_R: Tensor) -> Keys:
        return Keys(*self.tables.keys_values(codes_RG, positions_R))


class PerCodeword(Expansion):
    """The codewords that occur, each with the logarithm of how often it does."""

    def __init__(self, block: Block | DecoderBlock, quantizer: Quantizer, layer: int):
        rotation_DD = None if quantizer.rotation_LDD is None else quantizer.rotation_LDD[layer]
        self.codewords = CodewordAttention(block, quantizer.codebooks_LIKd[layer], rotation_DD)

    def keys(self, codes_RG: Tensor, positions_R: Tensor) -> Keys:
        return Keys(*self.codewords.occurring(codes_RG))


@torch.no_grad()
def expansions(
    model: VisionTransformer | Decoder,
    quantizer: Quantizer,
    optimizations: Optimizations,
    quantized: Quantized,
    cache: Path | None,
) -> list[Expansion]:
    """One for each block. cache: the folder of tables; None makes them anew.

    Raises ValueError where the model or the codebooks do not allow a speed-up.
    """
    blocks = list(cast(Iterable[Block | DecoderBlock], model.blocks))
    if optimizations.dedup:
        return [PerCodeword(block, quantizer, layer) for layer, block in enumerate(blocks)]
    if optimizations.lut:
        return [Tabled(tables) for tables in tables_for(model, quantizer, cache_dir=cache)]
    if quantized == "keys_values":
        return [Copied(block, quantizer, layer) for layer, block in enumerate(blocks)]
    return [Decoded(block, quantizer, layer, quantized == "normalized") for layer, block in enumerate(blocks)]
