"""Keys and values of received tokens, from their indices, and the attention of own queries to them.

Shape suffixes: R received tokens, D hidden, I indices of a token, H heads, J key/value heads, Q own rows, K head
width, U keys.
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
from testbed.astra.lookup_tables import LookupTable, lookup_tables
from testbed.astra.optimizations import Optimizations
from testbed.astra.quantized import Quantized, split_keys_values
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
        """Attention of all queries except the first ``blind`` ones, which see none of the keys."""
        part = attend_part(q_BHQK[:, :, blind:], self.k_BJUK, self.v_BJUK, self.bias_1U)
        if not blind:  # padding by nothing would copy the part
            return part
        return PartialAttention(F.pad(part.out, (0, 0, blind, 0)), F.pad(part.lse, (blind, 0), value=-math.inf))


class Expansion(ABC):
    """How one block turns received indices into keys and values."""

    @abstractmethod
    def keys(self, codes_RI: Tensor, positions_R: Tensor) -> Keys:
        """Keys and values of received tokens with these indices, int64, at these positions."""


class DecodeAndProject(Expansion):
    """Decode the indices to tokens, then apply the block's norm and projections, as in the paper."""

    def __init__(self, block: Block | DecoderBlock, quantizer: Quantizer, layer: int, normalized: bool):
        """normalized: the codebooks are of normalized tokens, so no norm follows."""
        self.block, self.quantizer, self.layer, self.normalized = block, quantizer, layer, normalized

    def keys(self, codes_RI: Tensor, positions_R: Tensor) -> Keys:
        h_BRD = self.quantizer.decode(self.layer, codes_RI)[None]
        if not self.normalized:
            h_BRD = self.block.norm1(h_BRD)
        k_BJRK, v_BJRK = self.block.attn.pre_rope_keys_values(h_BRD)
        return Keys(self.block.attn.apply_rotary(k_BJRK, positions_R), v_BJRK)


class DecodeKeysValues(Expansion):
    """Decode the indices to keys and values, for codebooks of keys and values."""

    def __init__(self, block: Block | DecoderBlock, quantizer: Quantizer, layer: int):
        self.block, self.quantizer, self.layer = block, quantizer, layer

    def keys(self, codes_RI: Tensor, positions_R: Tensor) -> Keys:
        attn, kv_BRW = self.block.attn, self.quantizer.decode(self.layer, codes_RI)[None]
        k_BJRK, v_BJRK = split_keys_values(kv_BRW, attn.key_value_heads)
        return Keys(attn.apply_rotary(k_BJRK, positions_R), v_BJRK)


class SumTableRows(Expansion):
    """Sum rows of a lookup table (``lut``)."""

    def __init__(self, table: LookupTable):
        self.table = table

    def keys(self, codes_RI: Tensor, positions_R: Tensor) -> Keys:
        return Keys(*self.table.keys_values(codes_RI, positions_R))


class DeduplicateCodewords(Expansion):
    """Take each codeword that occurs once, with the logarithm of its count (``dedup``)."""

    def __init__(self, block: Block | DecoderBlock, quantizer: Quantizer, layer: int):
        rotation_DD = None if quantizer.rotation_LDD is None else quantizer.rotation_LDD[layer]
        self.codewords = CodewordAttention(block, quantizer.codebooks_LIKd[layer], rotation_DD)

    def keys(self, codes_RI: Tensor, positions_R: Tensor) -> Keys:
        return Keys(*self.codewords.occurring(codes_RI))


@torch.no_grad()
def expansions(
    model: VisionTransformer | Decoder,
    quantizer: Quantizer,
    optimizations: Optimizations,
    quantized: Quantized,
    cache_dir: Path | None,
) -> list[Expansion]:
    """The expansion of each block. cache_dir: the folder of lookup tables; None computes them without a file.

    Raises ValueError where the model or the codebooks do not allow an optimization.
    """
    blocks = list(cast(Iterable[Block | DecoderBlock], model.blocks))
    if optimizations.dedup:
        return [DeduplicateCodewords(block, quantizer, layer) for layer, block in enumerate(blocks)]
    if optimizations.lut:
        return [SumTableRows(table) for table in lookup_tables(model, quantizer, cache_dir)]
    if quantized == "keys_values":
        return [DecodeKeysValues(block, quantizer, layer) for layer, block in enumerate(blocks)]
    return [DecodeAndProject(block, quantizer, layer, quantized == "normalized") for layer, block in enumerate(blocks)]
