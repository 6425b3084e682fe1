"""Llama (Touvron et al., arXiv 2302.13971), with grouped queries and long-context scaling as in Llama 3 (arXiv
2407.21783).

Rotary embeddings (Su et al., arXiv 2104.09864) rotate pairs of numbers of a head. Checkpoints have one of two layouts
of these pairs: *halves* (i with i + K/2, in hub folders) or *interleaved* (2i with 2i + 1, in the original release and
in GGUF). This model uses halves only: weights of hub folders need no change, and the rotation works on contiguous
halves. ``halves_from_interleaved`` permutes the rows of the other layout at load time. Scores do not change, because
queries and keys are permuted in the same way.

Shape suffixes as in decoder.py; J key/value heads, each shared by H/J query heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testbed.models.decoder import Decoder, DecoderBlock
from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention


@dataclass(frozen=True)
class RotaryScaling:
    """Llama 3's scaling of rotary frequencies for contexts longer than the first training's (``rope_type`` llama3).

    Frequencies with wavelengths above ``original_positions / low_factor`` tokens are divided by ``factor``. Those below
    ``original_positions / high_factor`` stay as they are. Those between are interpolated.
    """

    factor: float
    low_factor: float
    high_factor: float
    original_positions: int


@dataclass(frozen=True)
class Rotary:
    """Rotary angles of a head of ``width`` numbers: position * theta^(-2i / width) for pair i, scaled if asked for."""

    width: int
    theta: float
    scaling: RotaryScaling | None = None

    def frequencies(self) -> Tensor:
        """Radians per position of each pair, [K/2], float32."""
        frequency_k = 1 / self.theta ** (torch.arange(0, self.width, 2, dtype=torch.float32) / self.width)
        if self.scaling is None:
            return frequency_k
        s = self.scaling
        waves_k = s.original_positions * frequency_k / (2 * math.pi)  # in the original context
        blend_k = ((waves_k - s.low_factor) / (s.high_factor - s.low_factor)).clamp(0, 1)
        return frequency_k * (blend_k + (1 - blend_k) / s.factor)

    def apply(self, x_BHSK: Tensor, start: int | Tensor) -> Tensor:
        """Rotate rows [B, H, S, K] at positions ``start``, ``start + 1``, ..., or at the positions ``start`` [S]."""
        if isinstance(start, Tensor):
            angle_Sk = start.to(torch.float32)[:, None] * self.frequencies().to(start.device)
            cos_Sk, sin_Sk = angle_Sk.cos(), angle_Sk.sin()
        else:
            cos_Sk, sin_Sk = _cos_sin(self, start, x_BHSK.shape[-2], x_BHSK.device)
        a, b = x_BHSK.chunk(2, dim=-1)
        return torch.cat([a * cos_Sk - b * sin_Sk, b * cos_Sk + a * sin_Sk], dim=-1)


@lru_cache(maxsize=32)  # all layers use the same values
def _cos_sin(rotary: Rotary, start: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``rows`` positions from ``start`` on, each [S, K/2]."""
    with torch.inference_mode(False):  # so that training can use values that were computed in inference
        angle_Sk = torch.arange(start, start + rows, dtype=torch.float32)[:, None] * rotary.frequencies()
        return angle_Sk.cos().to(device), angle_Sk.sin().to(device)


def halves_from_interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection [heads*K, D] from interleaved pairs to halves."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama. ``head_width`` times ``heads`` equals ``hidden`` in most models."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_width: int
    mlp_hidden: int
    vocabulary: int
    norm_eps: float
    rotary: Rotary
    tied: bool

    def shape(self, tokens: int) -> ModelShape:
        """The sizes that cost formulas need, for a prompt of ``tokens``. An embedding lookup has no MACs."""
        return ModelShape(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            mlp_hidden=self.mlp_hidden,
            tokens=tokens,
            class_tokens=0,
            patch_values=0,
            classes=self.vocabulary,
            causal=True,
            rotary=True,
            key_value_heads=self.key_value_heads,
            mlp_matrices=3,
            head_width=self.head_width,
        )


class GroupedAttention(Attention):
    """Attention with rotary embeddings, fewer key/value heads than query heads, and no biases.

    ``keys_values`` returns rotated keys. ``pre_rope_keys_values`` and ``apply_rotary`` are for methods that quantize
    keys before their rotary embedding.
    """

    def __init__(self, config: LlamaConfig):
        nn.Module.__init__(self)  # the parent's linear layers have other sizes
        width, kv_width = config.heads * config.head_width, config.key_value_heads * config.head_width
        self.heads, self._key_value_heads, self.rotary = config.heads, config.key_value_heads, config.rotary
        self.q = nn.Linear(config.hidden, width, bias=False)
        self.k = nn.Linear(config.hidden, kv_width, bias=False)
        self.v = nn.Linear(config.hidden, kv_width, bias=False)
        self.proj = nn.Linear(width, config.hidden, bias=False)

    @property
    def key_value_heads(self) -> int:
        return self._key_value_heads

    def query(self, x_BSD: Tensor, start: int | Tensor = 0) -> Tensor:
        """Queries [B, H, S, K] of normalized embeddings at positions ``start``, ``start + 1``, ..."""
        return self.apply_rotary(self.split_heads(self.q(x_BSD)), start)

    def pre_rope_keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before their rotary embedding, and values, each [B, J, S, K], of normalized embeddings."""
        k_BSJK = self.k(x_BSD).unflatten(-1, (self.key_value_heads, -1))
        v_BSJK = self.v(x_BSD).unflatten(-1, (self.key_value_heads, -1))
        return k_BSJK.transpose(-3, -2), v_BSJK.transpose(-3, -2)

    def apply_rotary(self, k_BHSK: Tensor, start: int | Tensor = 0) -> Tensor:
        """Keys, or queries, rotated to positions ``start``, ``start + 1``, ..., or to those of ``start`` [S]."""
        return self.rotary.apply(k_BHSK, start)

    def mix(self, q_BHSK: Tensor, k_BJSK: Tensor, v_BJSK: Tensor, visible: Tensor | None = None) -> Tensor:
        """Softmax attention merged over heads, [B, S, H*K], before the output projection; see Attention.mix."""
        o_BHSK = F.scaled_dot_product_attention(q_BHSK, k_BJSK, v_BJSK, attn_mask=visible, enable_gqa=True)
        return o_BHSK.transpose(-3, -2).flatten(-2)


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases (Shazeer, arXiv 2002.05202)."""

    def __init__(self, hidden: int, mlp_hidden: int):
        super().__init__()
        self.gate = nn.Linear(hidden, mlp_hidden, bias=False)
        self.up = nn.Linear(hidden, mlp_hidden, bias=False)
        self.down = nn.Linear(mlp_hidden, hidden, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BSD)) * self.up(x_BSD))


class Llama(Decoder):
    """Decoder with RMSNorm, grouped-query attention and SwiGLU."""

    config: LlamaConfig

    def __init__(self, config: LlamaConfig):
        c = config
        blocks = [
            DecoderBlock(
                nn.RMSNorm(c.hidden, eps=c.norm_eps),
                GroupedAttention(c),
                nn.RMSNorm(c.hidden, eps=c.norm_eps),
                SwiGlu(c.hidden, c.mlp_hidden),
            )
            for _ in range(c.layers)
        ]
        super().__init__(c.vocabulary, c.hidden, blocks, nn.RMSNorm(c.hidden, eps=c.norm_eps), c.tied)
        self.config = config
