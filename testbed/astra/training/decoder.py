"""ASTRA for causal decoders on N devices in one process, batched and differentiable (docs/paper.md, sections 1.2, 1.7
and 5).

A query sees its own device's earlier rows exactly and earlier devices' rows as their codes say, in one softmax. There
are no class tokens. What the last device has, nobody needs, so it is not quantized.

*Anchors*, the first tokens of the sequence, draw much attention in decoders (Xiao et al., arXiv 2309.17453) and may
stay exact for everybody. They see no token but anchor_tokens, so a device may as well compute them itself as receive
them.

Shape suffixes as in llama.py; T tokens, Q those of them that are quantized, W numbers of what is quantized.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor

from testbed.astra.bit_packing import index_bits
from testbed.astra.int8_tokens import check_int8_tokens, with_int8_tokens
from testbed.astra.quantized import Quantized, apart, check_quantized, quantized_width, to_quantize
from testbed.astra.training.ema_quantizer import VectorQuantizer
from testbed.astra.training.vit import Forward, Student, check_codebooks, check_shares, device_layout
from testbed.errors import ConfigError
from testbed.models.decoder import DecoderBlock, causal_mask
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama
from testbed.models.shape import ModelShape


def bits_per_token(
    shape: ModelShape,
    quantized: Quantized,
    groups: int,
    codebook_size: int,
    anchor_tokens: int = 0,
    anchor_bits: int = 32,
) -> float:
    """Bits that a layer sends of one token, mean over the ``shape.tokens`` of the sequence.

    anchor_bits: of each number of an anchor; 0 where every device computes the anchor_tokens itself.
    """
    codes = groups * index_bits(codebook_size)
    exact = min(anchor_tokens, shape.tokens) / shape.tokens
    return (1 - exact) * codes + exact * anchor_bits * quantized_width(shape, quantized)


def causal_layout(shares: Sequence[int], anchor_tokens: int) -> Tensor:
    """Who sees what, [T, T + Q], True where a query may look: at exact rows, then at quantized ones.

    shares: tokens of each device, in order. The Q quantized rows are those from ``anchor_tokens`` to the last device's
    first.
    """
    tokens = sum(shares)
    causal_TT = causal_mask(tokens, tokens)
    exact_TT, quantized_TT = (half & causal_TT for half in device_layout(shares, []).visible.chunk(2, dim=1))
    exact_TT[:, :anchor_tokens] = causal_TT[:, :anchor_tokens]
    return torch.cat([exact_TT, quantized_TT[:, anchor_tokens : tokens - shares[-1]]], dim=1)


def sent_shares(shares: Sequence[int], anchor_tokens: int) -> list[int]:
    """Tokens that each device quantizes: no anchor tokens, none of the last device. Leaves out devices without any."""
    stops = list(itertools.accumulate(shares[:-1]))
    sent = [stop - max(anchor_tokens, stop - share) for stop, share in zip(stops, shares, strict=False)]
    return [count for count in sent if count > 0]


class AstraDecoder(Student):
    """A Llama or GPT-2 on any number of devices, each with a contiguous share of the tokens."""

    model: Llama | Gpt2

    def __init__(
        self,
        model: Llama | Gpt2,
        tokens: int,
        quantizer: VectorQuantizer | None = None,
        quantized: Quantized = "residual",
        anchor_tokens: int = 0,
        int8_tokens: int = 0,
    ):
        """tokens: of the sequences that it is trained on. quantizer: of the model's layers and ``quantized_width``;
        None for a model that only ever runs on one device. anchor_tokens: how many first tokens stay exact for
        everybody.
        int8_tokens: how many tokens each device sends in int8 besides; see int8_tokens.py.

        Raises ConfigError for another kind of ``quantized`` or a negative number of anchor_tokens, ValueError for a
        quantizer of another model.
        """
        super().__init__()
        check_quantized(quantized)
        if anchor_tokens < 0:
            raise ConfigError("astra.anchor_tokens", anchor_tokens, "must be 0 or more")
        check_int8_tokens(int8_tokens)
        shape = model.config.shape(tokens)
        check_codebooks(quantizer, shape.layers, quantized_width(shape, quantized))
        self.model, self.quantizer, self.anchor_tokens, self._tokens = model, quantizer, anchor_tokens, tokens
        self.quantized: Quantized = quantized
        self.int8_tokens = int8_tokens

    @property
    def tokens(self) -> int:
        return self._tokens

    def describe(self) -> dict[str, Any]:
        """All settings, as JSON data."""
        quantizer = None if self.quantizer is None else self.quantizer.describe()
        own = {key: getattr(self, key) for key in ("tokens", "quantized", "anchor_tokens", "int8_tokens")}
        return {"model": asdict(self.model.config), **own, "quantizer": quantizer}

    def forward(self, ids_BT: Tensor, shares: Sequence[int], keep_states: bool = False) -> Forward:
        """One pass of ``len(shares)`` devices over token ids of any length; logits [B, T, V] are for the tokens after.

        Raises ValueError for shares that do not cover the tokens, or several devices without a quantizer.
        """
        check_shares(shares, ids_BT.shape[1], self.quantizer)
        sent = slice(self.anchor_tokens, sum(shares[:-1]))
        visible = causal_layout(shares, self.anchor_tokens).to(ids_BT.device)
        x_BTD = self.model.embed(ids_BT)
        commitment, states = x_BTD.new_zeros(()), []
        for layer, block in enumerate(cast(Iterable[DecoderBlock], self.model.blocks)):
            if sent.start >= sent.stop or self.quantizer is None:
                x_BTD = block(x_BTD)
            else:
                own_BQW = to_quantize(block, x_BTD, self.quantized)[:, sent]
                known_BQW, distance = self.quantizer(layer, own_BQW)
                commitment = commitment + distance
                if self.int8_tokens:
                    known_BQW = with_int8_tokens(
                        own_BQW, known_BQW, sent_shares(shares, self.anchor_tokens), self.int8_tokens
                    )
                x_BTD = block.finish(x_BTD, self._mixed_attention(block, x_BTD, known_BQW, visible))
            if keep_states:
                states.append(x_BTD)
        return Forward(self.model.logits(self.model.norm(x_BTD)), commitment, states)

    def _mixed_attention(self, block: DecoderBlock, x_BTD: Tensor, known_BQW: Tensor, visible: Tensor) -> Tensor:
        """Attention's weighted sum, before the output projection; one softmax over exact and quantized rows."""
        attn, h_BTD = block.attn, block.norm1(x_BTD)
        k_BJTK, v_BJTK = attn.keys_values(h_BTD)
        if self.quantized == "keys_values":
            known_k_BJQK, known_v_BJQK = apart(known_BQW, k_BJTK.shape[1])
        else:
            h_BQD = block.norm1(known_BQW) if self.quantized == "residual" else known_BQW
            known_k_BJQK, known_v_BJQK = attn.pre_rope_keys_values(h_BQD)
        keys = torch.cat([k_BJTK, attn.apply_rotary(known_k_BJQK, self.anchor_tokens)], dim=-2)
        return attn.mix(attn.query(h_BTD), keys, torch.cat([v_BJTK, known_v_BJQK], dim=-2), visible)
