"""Mixed-precision attention of N devices in one process, by masks (ASTRA, arXiv 2505.19342; docs/paper.md, sections 1.2
and 1.6).

A query attends to the rows of its own device at full precision and to other devices' content rows quantized, in one
softmax. The N copies of the class token come first in the sequence; each is seen by its own device only. Distributed
runs are verified against this reference, so it shares no code with them.

Shape suffixes: B batch, S = N + T sequence, T content tokens, N devices, D hidden, H heads, K head width, L layers,
I indices of a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from testbed.astra.quantizer import Quantizer
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer

TIE = 1e-4  # of the mean squared norm: difference of distances that rounding may explain


@dataclass(frozen=True)
class Simulated:
    """Normalized last states of the content tokens [T, D], logits [classes], and how many near ties differ."""

    hidden: Tensor
    logits: Tensor
    ties: int


@dataclass(frozen=True)
class Masks:
    """Attention masks [S, S] (query, key), True where visible: ``exact`` at full precision, ``visible`` at all."""

    exact: Tensor
    visible: Tensor


def block_masks(shares: Sequence[int]) -> Masks:
    """The masks of devices with ``shares`` content tokens and one class copy each; class copies come first."""
    devices = torch.arange(len(shares))
    owner_S = torch.cat([devices, devices.repeat_interleave(torch.tensor(list(shares)))])
    exact_SS = owner_S[:, None] == owner_S[None, :]
    content_S = torch.arange(len(owner_S)) >= len(shares)
    return Masks(exact_SS, exact_SS | content_S[None, :])


def mixed_attention(block: Block, x_BSD: Tensor, quantized_BSD: Tensor, masks: Masks) -> Tensor:
    """Attention's weighted sum [B, S, D], before the output projection.

    x_BSD: the layer's input before its norm. quantized_BSD: the same rows as other devices receive them.
    """
    h_BSD = block.norm1(x_BSD)
    q_BHSK = block.attn.query(h_BSD)
    k_BHSK, v_BHSK = block.attn.keys_values(h_BSD)
    remote_k_BHSK, remote_v_BHSK = block.attn.keys_values(block.norm1(quantized_BSD))
    # Head by head: half the time of all heads at once, whose scores of 1028 rows are 100 MB in float64.
    sides = (side.unbind(1) for side in (q_BHSK, k_BHSK, v_BHSK, remote_k_BHSK, remote_v_BHSK))
    return torch.cat([_one_head(masks, *of_head) for of_head in zip(*sides, strict=True)], dim=-1)


def _one_head(masks: Masks, q: Tensor, k: Tensor, v: Tensor, remote_k: Tensor, remote_v: Tensor) -> Tensor:
    """The weighted sum of one head, [B, S, K], from [B, S, K] each."""
    scores_BSS = torch.where(masks.exact, q @ k.mT, q @ remote_k.mT) / math.sqrt(k.shape[-1])
    weights_BSS = scores_BSS.masked_fill(~masks.visible, -math.inf).softmax(-1)
    return (weights_BSS * masks.exact) @ v + (weights_BSS * ~masks.exact) @ remote_v


@torch.no_grad()
def simulate(
    model: VisionTransformer,
    quantizer: Quantizer | None,
    inputs: Tensor,
    shares: Sequence[int],
    codes: Tensor | None = None,
) -> Simulated:
    """One inference on ``len(shares)`` devices, in the model's precision. A single device needs no quantizer.

    inputs: pixels [1, 3, height, width]. shares: content tokens of each device, in order; their sum is the model's
    tokens. codes: indices [L, T, I] that a distributed run sent. They replace the simulation's own choice, because
    rounding may decide between two codewords that are about equally near.

    Raises ValueError, with layer and token, for a sent codeword that is farther than the nearest one by more than
    ``TIE`` times the group's mean squared norm, which rounding cannot explain. Also for shares that do not cover the
    tokens, and for several devices without a quantizer.
    """
    world, tokens = len(shares), model.shape.tokens
    if sum(shares) != tokens or min(shares) < 1:
        raise ValueError(f"shares are {list(shares)}; expected positive numbers of sum {tokens}")
    if world > 1 and quantizer is None:
        raise ValueError(f"{world} devices need a quantizer")
    masks, ties = block_masks(shares), 0
    x_BSD = torch.cat([model.embed_class().expand(-1, world, -1), model.embed_content(inputs)], dim=1)
    for layer, block in enumerate(cast(Iterable[Block], model.blocks)):
        quantized_BSD = x_BSD
        if world > 1 and quantizer is not None:
            content_TD = x_BSD[0, world:]
            own_TI = quantizer.encode(layer, content_TD.float())
            if codes is not None:
                ties += count_ties(quantizer, layer, content_TD, own_TI, codes[layer])
                own_TI = codes[layer]
            quantized_BSD = torch.cat([x_BSD[:, :world], quantizer.decode(layer, own_TI, x_BSD.dtype)[None]], dim=1)
        x_BSD = block.finish(x_BSD, mixed_attention(block, x_BSD, quantized_BSD, masks))
    x_BSD = model.norm(x_BSD)
    return Simulated(x_BSD[0, world:], model.classify(x_BSD[:, :world].mean(1))[0], ties)


def count_ties(quantizer: Quantizer, layer: int, x_TD: Tensor, own_TI: Tensor, given_TI: Tensor) -> int:
    """How many given codes differ from the own ones. Raises ValueError where rounding cannot explain it."""
    if torch.equal(own_TI, given_TI):
        return 0
    norms_G = x_TD.unflatten(1, (quantizer.groups, -1)).square().sum(-1).mean(0)
    relative_TI = quantizer.excess(layer, x_TD, given_TI) / (TIE * norms_G.repeat(quantizer.num_quantizers))
    if (relative_TI > 1).any():
        token, index = (int(i) for i in (relative_TI > 1).nonzero()[0])
        raise ValueError(
            f"codes at layer {layer}, token {token}, group {index}: codeword {int(given_TI[token, index])} was sent, "
            f"{int(own_TI[token, index])} is nearest, by {TIE * relative_TI[token, index]:.1e} of the mean squared "
            f"norm; allowed for rounding: {TIE:g}"
        )
    return int((own_TI != given_TI).sum())
