"""Attention to a part of the keys, and the merge of such parts into one softmax, as in flash attention.

A part holds the attention of all queries to some of the keys and, for each query, the log-sum-exp of its scores. The
softmax over all keys follows exactly from both (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv
2205.14135). A device can therefore attend to its own rows while the rows of other devices arrive.

Shape suffixes: B batch, H heads, J key/value heads (H, or a divisor of it), Q queries, R keys, K head width, N parts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

OPERATOR = "_scaled_dot_product_flash_attention_for_cpu"
ARGUMENTS = ["query", "key", "value", "dropout_p", "is_causal", "attn_mask", "scale"]
RETURNS = ["output", "logsumexp"]


def cpu_flash_attention() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """PyTorch's kernel for ``scaled_dot_product_attention`` on CPUs, or None where it has no such operator.

    The public function does not return the log-sum-exp. The operator and its schema are private, so their names are
    checked here, and used nowhere else.
    """
    operator = getattr(torch.ops.aten, OPERATOR, None)
    schema = getattr(getattr(operator, "default", None), "_schema", None)
    if schema is None:
        return None
    arguments, returns = ([value.name for value in values] for values in (schema.arguments, schema.returns))
    return operator if (arguments, returns) == (ARGUMENTS, RETURNS) else None


KERNEL = cpu_flash_attention()


class PartialAttention(NamedTuple):
    """Attention to some keys: ``out`` [B, H, Q, K], as if there were no others, and ``lse`` [B, H, Q].

    lse is the natural logarithm of the sum of exp(score). A query that sees no key has out 0 and lse -inf.
    """

    out: Tensor
    lse: Tensor

    def mixed(self) -> Tensor:
        """The heads side by side, [B, Q, H*K], as ``Attention.mix`` returns them."""
        return self.out.transpose(-3, -2).flatten(-2)


def attend_part(q_BHQK: Tensor, k_BJRK: Tensor, v_BJRK: Tensor, mask: Tensor | None = None) -> PartialAttention:
    """Attention to these keys. mask, [Q, R] or [1, R]: True where visible, or float numbers added to the scores.

    On CPUs and without gradients, PyTorch's flash attention kernel computes it. The kernel has no gradient of the
    log-sum-exp, so elsewhere matrix products and a softmax compute it. With 12 heads of 64, on one thread of a shared
    2-core AMD EPYC, the kernel took 10 ms for 256 queries and 768 keys, where products took 36 ms, and 159 ms for 1024
    and 3072, where products took 765 ms. ``merge`` of two such parts took 0.5 and 1.3 ms.

    Raises ValueError for a mask of another shape.
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
    if KERNEL is None:
        warn_without_kernel()
        return _by_products(q_BHQK, k_BJRK, v_BJRK, mask)
    out_BHQK, lse_BHQ = KERNEL(q_BHQK, k_BJRK, v_BJRK, attn_mask=mask)
    if mask is not None:  # the kernel returns 0 for a query that sees no key
        lse_BHQ = lse_BHQ.masked_fill((mask == -math.inf).all(-1), -math.inf)
    return PartialAttention(out_BHQK, lse_BHQ)


def merge(parts: Sequence[PartialAttention]) -> PartialAttention:
    """Attention to the keys of all parts in one softmax. parts: of the same queries, and no key in two of them."""
    lse_NBHQ = torch.stack([part.lse for part in parts])
    lse_BHQ = lse_NBHQ.logsumexp(0)
    # A query that sees no key in any part gets weights 0: -inf minus the smallest finite number is -inf.
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


@cache  # one warning in each process
def warn_without_kernel() -> None:
    """Say what the missing kernel costs."""
    warnings.warn(
        f"torch {torch.__version__} has no operator aten::{OPERATOR} with the expected arguments. Partial attention "
        "uses matrix products and a softmax, which took 3.6 to 4.8 times as long where both were timed.",
        stacklevel=3,
    )


def _any_grad(*tensors: Tensor) -> bool:
    return any(tensor.requires_grad for tensor in tensors)
