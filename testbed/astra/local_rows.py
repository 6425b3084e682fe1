"""One rank's rows of a plain model: what embeds them, what they see of each other, and how they become the answer.

Shape suffixes: Q own rows, P own tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from testbed.astra.costs import Split
from testbed.models.decoder import Decoder
from testbed.models.vit import VisionTransformer


class Rows(ABC):
    """See Split for which rows they are."""

    model: VisionTransformer | Decoder
    visible: Tensor | None  # [Q, Q], who of the own rows sees whom; None: all see all
    positions: int | Tensor  # of own rows among the tokens: the first one's, or all [Q] where they have a gap

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """Own rows [Q, D]."""

    @abstractmethod
    def answer(self, x_D: Tensor) -> Tensor:
        """Logits of a normalized row: the class copies' mean, or the last token."""


class VitRows(Rows):
    """Content tokens, and a copy of the class token in front of them."""

    model: VisionTransformer
    visible = None

    def __init__(self, model: VisionTransformer, split: Split):
        self.model, self.split = model, split
        self.positions = split.start

    def embed(self, inputs: Tensor) -> Tensor:
        start = self.split.start
        content = self.model.embed_content(inputs, start, start + self.split.shares[self.split.rank])
        return torch.cat([self.model.embed_class(), content], dim=1)[0]

    def answer(self, x_D: Tensor) -> Tensor:
        return self.model.classify(x_D[None])[0]


class DecoderRows(Rows):
    """Tokens of a text, each of which sees those before it."""

    model: Decoder

    def __init__(self, model: Decoder, split: Split):
        self.model, self.split = model, split
        own_P = torch.arange(split.start, split.start + split.shares[split.rank])
        position_Q = torch.cat([torch.arange(split.copies), own_P])
        self.visible = position_Q[:, None] >= position_Q
        self.positions = position_Q if split.copies else split.start

    def embed(self, inputs: Tensor) -> Tensor:
        start = self.split.start
        own = self.model.embed(inputs, start, start + self.split.shares[self.split.rank])
        return torch.cat([self.model.embed(inputs, 0, self.split.copies), own], dim=1)[0]

    def answer(self, x_D: Tensor) -> Tensor:
        return self.model.logits(x_D[None])[0]


def rows_of(model: VisionTransformer | Decoder, split: Split) -> Rows:
    """The kind of the model."""
    return VitRows(model, split) if isinstance(model, VisionTransformer) else DecoderRows(model, split)
