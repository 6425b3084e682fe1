"""Which tensor of a layer is quantized.

*residual*, the paper's choice, is the residual stream at the layer's input. *normalized* is the output of the layer's
first norm. *keys_values* are keys before their rotary embedding, and values. With grouped-query attention they have
fewer numbers than the residual stream, so the same bits describe them more exactly. The receiver uses them without a
projection (docs/paper.md, section 5).

Shape suffixes: B batch, S tokens, D hidden, J key/value heads, K head width, W numbers of what is quantized.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from testbed.errors import ConfigError, nearest
from testbed.models.decoder import DecoderBlock
from testbed.models.shape import ModelShape
from testbed.models.transformer import Block

Quantized = Literal["residual", "normalized", "keys_values"]


def check_quantized(quantized: str) -> None:
    """Raise ConfigError (key ``astra.quantized``) for an unknown name."""
    if quantized not in get_args(Quantized):
        raise ConfigError("astra.quantized", quantized, nearest(quantized, get_args(Quantized)))


def quantized_width(shape: ModelShape, quantized: Quantized) -> int:
    """Numbers of one token that are quantized in one layer."""
    return 2 * shape.key_width if quantized == "keys_values" else shape.hidden


def join_keys_values(k_BJSK: Tensor, v_BJSK: Tensor) -> Tensor:
    """Each token's keys and values in one row, [B, S, 2*J*K]: all heads' keys, then all heads' values."""
    return torch.cat([k_BJSK, v_BJSK], dim=1).transpose(1, 2).flatten(2)


def split_keys_values(kv_BSW: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """The inverse of ``join_keys_values``: keys and values of ``heads`` key/value heads, each [B, J, S, K]."""
    k_BJSK, v_BJSK = kv_BSW.unflatten(-1, (2 * heads, -1)).transpose(1, 2).chunk(2, dim=1)
    return k_BJSK, v_BJSK


def to_quantize(block: Block | DecoderBlock, x_BSD: Tensor, quantized: Quantized) -> Tensor:
    """The rows [B, S, W] that a layer quantizes, from its input rows [B, S, D]."""
    if quantized == "residual":
        return x_BSD
    h_BSD = block.norm1(x_BSD)
    return h_BSD if quantized == "normalized" else join_keys_values(*block.attn.pre_rope_keys_values(h_BSD))
