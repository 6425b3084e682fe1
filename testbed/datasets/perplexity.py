"""How well a language model predicts text: negative log-likelihood of each window, and perplexity of all windows.

Shape suffixes: N windows, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from testbed.errors import TestbedError


@torch.no_grad()
def window_nll(
    logits_of: Callable[[Tensor], Tensor], windows_NS: Tensor, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """Mean negative log-likelihood of each window's tokens except the first, in nats per token: [N], float64.

    logits_of: ids [1, S] -> logits [1, S, V], a model or a method's simulation of it. Logits are large, so windows are
    processed one by one. progress(done, total): called after each window. All windows have the same length; a bootstrap
    resamples windows. Raises TestbedError for a likelihood that is not finite, as it is where outputs are not.
    """
    nll_N = torch.empty(len(windows_NS), dtype=torch.float64)
    for index, ids_S in enumerate(windows_NS):
        logits_SV = logits_of(ids_S[None])[0]
        nll_N[index] = F.cross_entropy(logits_SV[:-1].float(), ids_S[1:])
        if not nll_N[index].isfinite():
            raise TestbedError(f"the negative log-likelihood of window {index} is {nll_N[index]}, not a finite number")
        if progress is not None:
            progress(index + 1, len(windows_NS))
    return nll_N


def perplexity(nll_N: Tensor) -> float:
    """exp of the mean over windows of equal length, which is the mean over all predicted tokens. nll_N: in nats.

    Infinite for a mean of more than 709 nats.
    """
    return nll_N.mean().exp().item()
