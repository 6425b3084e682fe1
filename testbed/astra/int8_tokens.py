"""Tokens that are sent in int8 in addition to their codes, because their codes describe them worst.

In each layer, each device picks those of its own tokens whose quantization error |X - X̂| is largest. Other devices
then know these tokens almost exactly. The cost is the int8 codec's bytes of a token and an index for its position.

Shape suffixes: B batch, Q tokens that are sent, N tokens that are sent in int8, W numbers of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from testbed.astra.bit_packing import index_bits
from testbed.comm.codecs import BLOCK, Int8
from testbed.errors import ConfigError


def check_int8_tokens(count: int) -> None:
    """Raise ConfigError (key ``astra.int8_tokens``) for a negative number."""
    if count < 0:
        raise ConfigError("astra.int8_tokens", count, "must be 0 or more")


def int8_bits(count: int, width: int, shares: Sequence[int]) -> float:
    """Bits per token and layer, mean over all tokens, if each device sends ``count`` tokens of its share in int8."""
    bits = [min(count, share) * (8 * Int8().encoded_bytes(width) + index_bits(share)) for share in shares]
    return sum(bits) / sum(shares)


def with_int8_tokens(x_BQW: Tensor, received_BQW: Tensor, shares: Sequence[int], count: int) -> Tensor:
    """``received_BQW`` with the int8 form of the ``count`` tokens of each share whose error is largest.

    x_BQW: the exact tokens; gradients of the int8 tokens go there. received_BQW: the same tokens as their codes
    describe them. shares: tokens of each device that sends, in order.
    """
    with torch.no_grad():
        error_BQ = (x_BQW - received_BQW).square().sum(-1)
        worst_BQ = torch.zeros_like(error_BQ, dtype=torch.bool)
        for part_Bq, worst_Bq in zip(error_BQ.split(list(shares), 1), worst_BQ.split(list(shares), 1), strict=True):
            worst_Bq.scatter_(1, part_Bq.topk(min(count, part_Bq.shape[1])).indices, True)
        exact_NW, codec = x_BQW[worst_BQ], Int8()
        padded = F.pad(exact_NW.float().cpu(), (0, -exact_NW.shape[1] % BLOCK))  # no block spans two tokens
        int8_NW = codec.decode(codec.encode(padded), padded.shape)[:, : exact_NW.shape[1]]
        rounding_BQW = torch.zeros_like(x_BQW)
        rounding_BQW[worst_BQ] = int8_NW.to(exact_NW) - exact_NW
    return torch.where(worst_BQ[..., None], x_BQW + rounding_BQW, received_BQW)
