"""GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).

Learned positions, LayerNorm, GELU in its tanh form. Shape suffixes as in decoder.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from testbed.models.decoder import Decoder, DecoderBlock
from testbed.models.shape import ModelShape
from testbed.models.transformer import Attention, Mlp


@dataclass(frozen=True)
class Gpt2Config:
    """Sizes of a GPT-2. positions: the greatest length of a sequence."""

    layers: int
    hidden: int
    heads: int
    mlp_hidden: int
    vocabulary: int
    positions: int
    norm_eps: float = 1e-5
    tied: bool = True

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
        )


class Gpt2(Decoder):
    """Decoder whose embedding contains learned positions, so its blocks need none."""

    config: Gpt2Config

    def __init__(self, config: Gpt2Config):
        c = config
        blocks = [
            DecoderBlock(
                nn.LayerNorm(c.hidden, eps=c.norm_eps),
                Attention(c.hidden, c.heads),
                nn.LayerNorm(c.hidden, eps=c.norm_eps),
                Mlp(c.hidden, c.mlp_hidden, approximate="tanh"),
            )
            for _ in range(c.layers)
        ]
        super().__init__(c.vocabulary, c.hidden, blocks, nn.LayerNorm(c.hidden, eps=c.norm_eps), c.tied)
        self.config = config
        self.position = nn.Embedding(c.positions, c.hidden)

    def embed(self, ids_BS: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """As Decoder.embed. Raises ValueError for a sequence longer than ``positions``."""
        stop = ids_BS.shape[1] if stop is None else stop
        if stop > self.config.positions:
            raise ValueError(f"{stop} tokens; expected at most {self.config.positions}, the positions of the model")
        return super().embed(ids_BS, start, stop) + self.position.weight[start:stop]
