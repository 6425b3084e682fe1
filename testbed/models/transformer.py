"""A pre-norm Transformer block whose parts can be called separately, as parallel methods need it.

Shape suffixes: B batch, S sequence, D hidden, H heads, K head width, F width of the MLP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention whose projections can be called separately.

    ``heads`` and the widths of the linear layers may describe some of the heads: a method that splits heads builds an
    ``Attention`` of its share and sums the partial outputs. start: position of the first row. Models whose embedding
    contains the positions do not use it.
    """

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(hidden, hidden)
        self.k = nn.Linear(hidden, hidden)
        self.v = nn.Linear(hidden, hidden)
        self.proj = nn.Linear(hidden, hidden)

    @property
    def key_value_heads(self) -> int:
        """Number of heads of keys, which is that of values."""
        return self.heads

    def split_heads(self, x_BSD: Tensor) -> Tensor:
        """[B, S, H*K] -> [B, H, S, K]."""
        return x_BSD.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def query(self, x_BSD: Tensor, start: int | Tensor = 0) -> Tensor:
        """Queries [B, H, S, K] of normalized embeddings."""
        return self.split_heads(self.q(x_BSD))

    def pre_rope_keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before the rotary embedding, and values, each [B, H, S, K], of normalized embeddings."""
        return self.split_heads(self.k(x_BSD)), self.split_heads(self.v(x_BSD))

    def apply_rotary(self, k_BHSK: Tensor, start: int | Tensor = 0) -> Tensor:
        """The rotary embedding of keys, of which this class has none: returns them unchanged. See GroupedAttention."""
        return k_BHSK

    def keys_values(self, x_BSD: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values, each [B, H, S, K], of normalized embeddings."""
        k_BHSK, v_BHSK = self.pre_rope_keys_values(x_BSD)
        return self.apply_rotary(k_BHSK, start), v_BHSK

    def mix(self, q_BHSK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, visible: Tensor | None = None) -> Tensor:
        """Softmax attention merged over heads, [B, S, H*K], before the output projection.

        visible, [queries, keys]: True where a query may attend, or float numbers added to the scores; None: everywhere.
        """
        o_BHSK = F.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, attn_mask=visible)
        return o_BHSK.transpose(-3, -2).flatten(-2)


class Mlp(nn.Module):
    """Linear, GELU, linear. ``approximate`` as in torch's gelu: ``none``, or ``tanh`` as in GPT-2."""

    def __init__(self, hidden: int, mlp_hidden: int, approximate: str = "none"):
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(hidden, mlp_hidden)
        self.fc2 = nn.Linear(mlp_hidden, hidden)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BSD), approximate=self.approximate))


class Block(nn.Module):
    """x + ls1 * attention(norm1(x)), then x + ls2 * mlp(norm2(x)). ls1, ls2: layer scale, None where there is none."""

    def __init__(self, hidden: int, heads: int, mlp_hidden: int, norm_eps: float, layer_scale: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden, eps=norm_eps)
        self.attn = Attention(hidden, heads)
        self.norm2 = nn.LayerNorm(hidden, eps=norm_eps)
        self.mlp = Mlp(hidden, mlp_hidden)
        self.ls1 = nn.Parameter(torch.ones(hidden)) if layer_scale else None
        self.ls2 = nn.Parameter(torch.ones(hidden)) if layer_scale else None

    def add_attention(self, x_BSD: Tensor, projected_BSD: Tensor) -> Tensor:
        """The residual after attention; ``projected_BSD`` is the output of ``attn.proj``."""
        return x_BSD + (projected_BSD if self.ls1 is None else self.ls1 * projected_BSD)

    def add_mlp(self, x_BSD: Tensor, mlp_BSD: Tensor) -> Tensor:
        """The residual after the MLP; ``mlp_BSD`` is the output of ``mlp``."""
        return x_BSD + (mlp_BSD if self.ls2 is None else self.ls2 * mlp_BSD)

    def finish(self, x_BSD: Tensor, mixed_BSD: Tensor) -> Tensor:
        """Everything after ``Attention.mix``: output projection, residual, MLP, residual."""
        x_BSD = self.add_attention(x_BSD, self.attn.proj(mixed_BSD))
        return self.add_mlp(x_BSD, self.mlp(self.norm2(x_BSD)))

    def forward(self, x_BSD: Tensor) -> Tensor:
        h_BSD = self.norm1(x_BSD)
        return self.finish(x_BSD, self.attn.mix(self.attn.query(h_BSD), *self.attn.keys_values(h_BSD)))
