"""What of a layer's input is quantised.

The paper takes the *residual* stream at the layer's input; *normalised* is what the layer's norm makes of it.
*keys_values* are the keys before their rotation and the values: under grouped-query attention they have fewer numbers
than the residual stream, so that the same bits say more of them, and nothing has to be multiplied when they arrive
(PAPER.md, section 5).

Shape suffixes: B batch, S tokens, D hidden, J key/value heads, K head width, W numbers of what is quantised.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from testbed.errors import ConfigError, nearest
from testbed.models.decoder import DecoderBlock
from testbed.models.shape import ModelShape
from testbed.models.transformer import Block

Quantised = Literal["residual", "normalised", "keys_values"]


def check_quantised(quantised: str) -> None:
    """Raise ConfigError for a name that does not exist."""
    if quantised not in get_args(Quantised):
        raise ConfigError("astra.quantised", quantised, nearest(quantised, get_args(Quantised)))


def quantised_width(shape: ModelShape, quantised: Quantised) -> int:
    """Numbers of a token that are quantised in one layer."""
    return 2 * shape.key_width if quantised == "keys_values" else shape.hidden


def side_by_side(k_BJSK: Tensor, v_BJSK: Tensor) -> Tensor:
    """Keys and values of a token in one row [B, S, 2*J*K]: all heads' keys, then all heads' values."""
    return torch.cat([k_BJSK, v_BJSK], dim=1).transpose(1, 2).flatten(2)


def apart(kv_BSW: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """What ``side_by_side`` joined: keys and values of ``heads`` heads, each [B, J, S, K]."""
    k_BJSK, v_BJSK = kv_BSW.unflatten(-1, (2 * heads, -1)).transpose(1, 2).chunk(2, dim=1)
    return k_BJSK, v_BJSK


def to_quantise(block: Block | DecoderBlock, x_BSD: Tensor, quantised: Quantised) -> Tensor:
    """What a layer quantises of its input rows, [B, S, W]."""
    if quantised == "residual":
        return x_BSD
    h_BSD = block.norm1(x_BSD)
    return h_BSD if quantised == "normalised" else side_by_side(*block.attn.unturned_keys_values(h_BSD))
