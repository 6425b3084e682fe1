"""A causal decoder under ASTRA on N devices in one process, batched and differentiable, for training.

docs/paper.md, sections 1.2, 1.7 and 5, describes the method.

A query sees its own device's earlier rows exactly and earlier devices' rows quantized, in one softmax. There are no
class tokens. No other device needs the last device's rows, so they are not quantized.

*Anchor tokens* are the first tokens of the sequence. They attract much attention in decoders (attention sinks: Xiao et
al., arXiv 2309.17453) and can stay exact for all devices. They see only each other, so each device can compute them
itself instead of receiving them.

Shape suffixes as in llama.py; T tokens, Q quantized tokens, W numbers of a token that are quantized.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import torch
from torch import Tensor

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.int8_tokens import check_int8_tokens, with_int8_tokens
from testbed.astra.quantized import Quantized, check_quantized, quantized_width, split_keys_values, to_quantize
from testbed.astra.training.ema_quantizer import VectorQuantizer
from testbed.astra.training.vit import Forward, Student, check_codebooks, check_shares, device_layout
from testbed.errors import ConfigError
from testbed.models.decoder import DecoderBlock, causal_mask
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama


def causal_layout(shares: Sequence[int], anchor_tokens: int) -> Tensor:
    """The attention mask [T, T + Q], True where a query sees an exact row (first T) or a quantized row.

    shares: tokens of each device, in order. The Q quantized rows are those after the anchor tokens and before the last
    device's first token.
    """
    tokens = sum(shares)
    causal_TT = causal_mask(tokens, tokens)
    exact_TT, quantized_TT = (half & causal_TT for half in device_layout(shares, []).visible.chunk(2, dim=1))
    exact_TT[:, :anchor_tokens] = causal_TT[:, :anchor_tokens]
    return torch.cat([exact_TT, quantized_TT[:, anchor_tokens : tokens - shares[-1]]], dim=1)


def sent_shares(shares: Sequence[int], anchor_tokens: int) -> list[int]:
    """Tokens that each device quantizes: no anchor tokens, none of the last device. Omits devices without any."""
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
        """tokens: length of the training sequences. quantized: see quantized.py. anchor_tokens: how many first tokens
        stay exact for all devices.

        Raises ConfigError for an unknown ``quantized`` or a negative number of tokens, ValueError for a quantizer that
        does not fit the model.
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

    @property
    def codebook_spec(self) -> CodebookSpec | None:
        spec = super().codebook_spec
        return spec and replace(spec, quantized=self.quantized, anchor_tokens=self.anchor_tokens)

    def describe(self) -> dict[str, Any]:
        """All settings, as JSON data."""
        quantizer = None if self.quantizer is None else self.quantizer.describe()
        own = {key: getattr(self, key) for key in ("tokens", "quantized", "anchor_tokens", "int8_tokens")}
        return {"model": asdict(self.model.config), **own, "quantizer": quantizer}

    def forward(self, ids_BT: Tensor, shares: Sequence[int], keep_states: bool = False) -> Forward:
        """One pass over token ids of any length on ``len(shares)`` devices; logits [B, T, V] predict the next tokens.

        Raises ValueError for shares that do not cover the tokens, and for several devices without a quantizer.
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
                received_BQW, distance = self.quantizer(layer, own_BQW)
                commitment = commitment + distance
                if self.int8_tokens:
                    senders = sent_shares(shares, self.anchor_tokens)
                    received_BQW = with_int8_tokens(own_BQW, received_BQW, senders, self.int8_tokens)
                x_BTD = block.finish(x_BTD, self._mixed_attention(block, x_BTD, received_BQW, visible))
            if keep_states:
                states.append(x_BTD)
        return Forward(self.model.logits(self.model.norm(x_BTD)), commitment, states)

    def _mixed_attention(self, block: DecoderBlock, x_BTD: Tensor, received_BQW: Tensor, visible: Tensor) -> Tensor:
        """Attention's weighted sum, before the output projection; one softmax over exact and quantized rows."""
        attn, h_BTD = block.attn, block.norm1(x_BTD)
        k_BJTK, v_BJTK = attn.keys_values(h_BTD)
        if self.quantized == "keys_values":
            remote_k_BJQK, remote_v_BJQK = split_keys_values(received_BQW, k_BJTK.shape[1])
        else:
            h_BQD = block.norm1(received_BQW) if self.quantized == "residual" else received_BQW
            remote_k_BJQK, remote_v_BJQK = attn.pre_rope_keys_values(h_BQD)
        keys = torch.cat([k_BJTK, attn.apply_rotary(remote_k_BJQK, self.anchor_tokens)], dim=-2)
        return attn.mix(attn.query(h_BTD), keys, torch.cat([v_BJTK, remote_v_BJQK], dim=-2), visible)
