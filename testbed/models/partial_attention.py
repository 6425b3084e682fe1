"""Attention in parts that are computed apart and merged afterwards, as flash attention merges blocks of keys.

A part is the attention of all queries to some of the keys, and for each query the log-sum-exp of its scores. From these
the softmax over all keys follows exactly (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). So a
device can attend to its own rows while the others' are under way.

Shape suffixes: B batch, H heads, J key/value heads (H, or a divisor of it), Q queries, R keys, K head width, N parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PartialAttention(NamedTuple):
    """Attention to some keys: ``out`` [B, H, Q, K], a softmax over them alone, and ``lse`` [B, H, Q], natural log.

    A query that sees no key has out 0 and lse -inf.
    """

    out: Tensor
    lse: Tensor

    def mixed(self) -> Tensor:
        """The heads side by side, [B, Q, H*K], as ``Attention.mix`` returns them."""
        return self.out.transpose(-3, -2).flatten(-2)


def attend_part(q_BHQK: Tensor, k_BJRK: Tensor, v_BJRK: Tensor, mask: Tensor | None = None) -> PartialAttention:
    """Attention to these keys. mask, [Q, R] or [1, R]: True where visible, or float numbers added to the scores.

    In inference on the CPU the kernel that ``scaled_dot_product_attention`` uses there is called by its own name, as
    the public function keeps the log-sum-exp to itself: 10 ms for 256 queries, 768 keys, 12 heads of 64 on one thread
    of a 2-core AMD EPYC that others used too, where products and a softmax take 36, and 159 against 765 for 1024 and
    3072. It has no gradient of the log-sum-exp, so elsewhere it is products and a softmax. Merging two parts costs 0.5
    and 1.3 ms. Raises ValueError for a mask of another shape.
    """
    queries, keys = q_BHQK.shape[-2], k_BJRK.shape[-2]
    if mask is not None and (mask.dim() != 2 or mask.shape[0] not in (1, queries) or mask.shape[1] != keys):
        raise ValueError(f"mask is {list(mask.shape)}; expected [{queries}, {keys}] or [1, {keys}]")
    if not queries or not keys:  # the kernel divides by their number
        return PartialAttention(torch.zeros_like(q_BHQK), q_BHQK.new_full(q_BHQK.shape[:-1], -math.inf))
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q_BHQK.dtype, device=mask.device).masked_fill_(~mask, -math.inf)
    if q_BHQK.device.type != "cpu" or (torch.is_grad_enabled() and _any_grad(q_BHQK, k_BJRK, v_BJRK)):
        return _by_products(q_BHQK, k_BJRK, v_BJRK, mask)
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out_BHQK, lse_BHQ = attend(q_BHQK, k_BJRK, v_BJRK, attn_mask=mask)
    if mask is not None:  # the kernel says 0 where nothing is visible
        lse_BHQ = lse_BHQ.masked_fill((mask == -math.inf).all(-1), -math.inf)
    return PartialAttention(out_BHQK, lse_BHQ)


def merge(parts: Sequence[PartialAttention]) -> PartialAttention:
    """Attention to the keys of all parts (of the same queries, no key in two of them) in one softmax."""
    lse_NBHQ = torch.stack([part.lse for part in parts])
    lse_BHQ = lse_NBHQ.logsumexp(0)
    # where nothing is visible in any part, -inf less the least finite number is -inf, and its weight 0
    weights_NBHQ1 = (lse_NBHQ - lse_BHQ.clamp(min=torch.finfo(lse_BHQ.dtype).min)).exp()[..., None]
    out_BHQK = parts[0].out * weights_NBHQ1[0]
    for part, weights_BHQ1 in zip(parts[1:], weights_NBHQ1[1:], strict=True):
        out_BHQK = torch.addcmul(out_BHQK, part.out, weights_BHQ1)
    return PartialAttention(out_BHQK, lse_BHQ)


def _by_products(q_BHQK: Tensor, k_BJRK: Tensor, v_BJRK: Tensor, mask: Tensor | None) -> PartialAttention:
    heads, shared = q_BHQK.shape[1], k_BJRK.shape[1]
    q_BJgQK = q_BHQK.unflatten(1, (shared, heads // shared)) / math.sqrt(q_BHQK.shape[-1])
    scores_BJgQR = q_BJgQK @ k_BJRK[:, :, None].mT
    if mask is not None:
        scores_BJgQR = scores_BJgQR + mask
    lse_BJgQ = scores_BJgQR.logsumexp(-1)
    floor_BJgQ = lse_BJgQ.clamp(min=torch.finfo(lse_BJgQ.dtype).min)
    out_BJgQK = (scores_BJgQR - floor_BJgQ[..., None]).exp() @ v_BJRK[:, :, None]
    return PartialAttention(out_BJgQK.flatten(1, 2), lse_BJgQ.flatten(1, 2))


def _any_grad(*tensors: Tensor) -> bool:
    return any(tensor.requires_grad for tensor in tensors)
