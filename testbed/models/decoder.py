"""The base of GPT-2 and Llama: causal blocks between an embedding and a head.

The parts of a block can be called separately, as in transformer.py. A method that owns rows ``start`` to ``stop`` of
the sequence computes them like this::

    h_BSD = block.norm1(x_BSD)  # rows 0 to stop; the rows before start come from other devices
    q_BHSK = block.attn.query(h_BSD[:, start:], start)
    keys, values = block.attn.keys_values(h_BSD)
    mixed_BSD = block.attn.mix(q_BHSK, keys, values, causal_mask(stop - start, stop))
    x_BSD = block.finish(x_BSD[:, start:], mixed_BSD)

Shape suffixes as in transformer.py; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """[queries, keys], True where visible: the last query sees all keys, each query before it one key less."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class Config(Protocol):
    """The sizes of an architecture."""

    def shape(self, tokens: int) -> ModelShape:
        """The sizes of the prefill of a prompt of ``tokens``."""
        ...


class DecoderBlock(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)), from the parts of one architecture."""

    def __init__(self, norm1: nn.Module, attn: Attention, norm2: nn.Module, mlp: nn.Module):
        super().__init__()
        self.norm1 = norm1
        self.attn = attn
        self.norm2 = norm2
        self.mlp = mlp

    def add_attention(self, x_BSD: Tensor, projected_BSD: Tensor) -> Tensor:
        """The residual after attention; ``projected_BSD`` is the output of ``attn.proj``."""
        return x_BSD + projected_BSD

    def add_mlp(self, x_BSD: Tensor, mlp_BSD: Tensor) -> Tensor:
        """The residual after the MLP; ``mlp_BSD`` is the output of ``mlp``."""
        return x_BSD + mlp_BSD

    def finish(self, x_BSD: Tensor, mixed_BSD: Tensor) -> Tensor:
        """Everything after ``Attention.mix``: output projection, residual, MLP, residual."""
        x_BSD = self.add_attention(x_BSD, self.attn.proj(mixed_BSD))
        return self.add_mlp(x_BSD, self.mlp(self.norm2(x_BSD)))

    def forward(self, x_BSD: Tensor) -> Tensor:
        """All rows of a sequence, from position 0 on, with causal attention."""
        h_BSD = self.norm1(x_BSD)
        visible = causal_mask(x_BSD.shape[1], x_BSD.shape[1], x_BSD.device)
        return self.finish(x_BSD, self.attn.mix(self.attn.query(h_BSD), *self.attn.keys_values(h_BSD), visible))


class Decoder(nn.Module):
    """Token ids to logits. tied: the head uses the matrix of the embedding.

    tokens: length of the prompts that a method splits. The plain model accepts prompts of any length.
    """

    config: Config
    tokens: int | None = None

    def __init__(self, vocabulary: int, hidden: int, blocks: Iterable[DecoderBlock], norm: nn.Module, tied: bool):
        super().__init__()
        self.token_embed = nn.Embedding(vocabulary, hidden)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head = None if tied else nn.Linear(hidden, vocabulary, bias=False)

    @property
    def shape(self) -> ModelShape:
        """The sizes that cost formulas need. Raises ValueError while ``tokens`` is not set."""
        if self.tokens is None:
            raise ValueError("tokens is None; set it to the length of the prompts")
        return self.config.shape(self.tokens)

    def embed(self, ids_BS: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of the sequence ``ids_BS`` (int64), [B, stop - start, D]."""
        return self.token_embed(ids_BS[:, start:stop])

    def logits(self, x_BSD: Tensor) -> Tensor:
        """Logits [B, S, V] of normalized last states [B, S, D]."""
        return F.linear(x_BSD, (self.token_embed if self.head is None else self.head).weight)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Token ids [B, S] -> logits [B, S, V]. Row i predicts token i + 1."""
        x_BSD = self.embed(ids_BS)
        for block in cast(Iterable[DecoderBlock], self.blocks):
            x_BSD = block(x_BSD)
        return self.logits(self.norm(x_BSD))
