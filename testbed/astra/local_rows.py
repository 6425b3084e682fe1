"""The rows that one rank computes: their embedding, the mask among them, and the model's output from them.

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
    """The rows of one rank. ``Split`` says which ones."""

    model: VisionTransformer | Decoder
    visible: Tensor | None  # [Q, Q], True where an own row sees another; None: every row sees every row
    positions: int | Tensor  # of own rows in the sequence: the first one's, or all [Q] where there is a gap

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """Own rows [Q, D] of the model's input."""

    @abstractmethod
    def logits(self, x_D: Tensor) -> Tensor:
        """Logits of a normalized row: the class copies' mean, or the last token."""


class VitRows(Rows):
    """A Vision Transformer's rows: a copy of the class token, then own content tokens."""

    model: VisionTransformer
    visible = None

    def __init__(self, model: VisionTransformer, split: Split):
        self.model, self.split = model, split
        self.positions = split.start

    def embed(self, inputs: Tensor) -> Tensor:
        start = self.split.start
        content = self.model.embed_content(inputs, start, start + self.split.shares[self.split.rank])
        return torch.cat([self.model.embed_class(), content], dim=1)[0]

    def logits(self, x_D: Tensor) -> Tensor:
        return self.model.classify(x_D[None])[0]


class DecoderRows(Rows):
    """A causal model's rows: copies of the anchor tokens, then own tokens. Each row sees itself and earlier rows."""

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

    def logits(self, x_D: Tensor) -> Tensor:
        return self.model.logits(x_D[None])[0]


def rows_of(model: VisionTransformer | Decoder, split: Split) -> Rows:
    """The rows of one rank, for this kind of model."""
    return VitRows(model, split) if isinstance(model, VisionTransformer) else DecoderRows(model, split)
