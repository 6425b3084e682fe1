"""The tokens whose codes say least of them, sent in int8 besides: what other devices know of them is nearly exact.

Each device picks those of its own tokens, in each layer, whose residual |X - X̂| is largest. They cost their numbers in
int8 and their positions; the bits are counted.

Shape suffixes: B batch, Q tokens that are sent, W numbers of a token.
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
    """Raise ConfigError for a negative number."""
    if count < 0:
        raise ConfigError("astra.int8_tokens", count, "must be 0 or more")


def int8_bits(count: int, width: int, shares: Sequence[int]) -> float:
    """Bits a token and layer, mean over all tokens, when each device sends ``count`` of its own so."""
    bits = [min(count, share) * (8 * Int8().encoded_bytes(width) + index_bits(share)) for share in shares]
    return sum(bits) / sum(shares)


def with_int8_tokens(x_BQW: Tensor, known_BQW: Tensor, shares: Sequence[int], count: int) -> Tensor:
    """``known_BQW``, but of the ``count`` worst tokens of each share their int8 form; gradients go to ``x_BQW`` there.

    shares: tokens of each device that sends, in order.
    """
    with torch.no_grad():
        residual_BQ = (x_BQW - known_BQW).square().sum(-1)
        worst_BQ = torch.zeros_like(residual_BQ, dtype=torch.bool)
        for part_Bq, chosen_Bq in zip(residual_BQ.split(list(shares), 1), worst_BQ.split(list(shares), 1), strict=True):
            chosen_Bq.scatter_(1, part_Bq.topk(min(count, part_Bq.shape[1])).indices, True)
        exact_NW, codec = x_BQW[worst_BQ], Int8()
        padded = F.pad(exact_NW.float().cpu(), (0, -exact_NW.shape[1] % BLOCK))  # no block reaches into the next token
        rounded_NW = codec.decode(codec.encode(padded), padded.shape)[:, : exact_NW.shape[1]]
        error_BQW = torch.zeros_like(x_BQW)
        error_BQW[worst_BQ] = rounded_NW.to(exact_NW) - exact_NW
    return torch.where(worst_BQ[..., None], x_BQW + error_BQW, known_BQW)
