"""Vision Transformer (Dosovitskiy et al., arXiv 2010.11929), with optional layer scale as in DINOv2.

Shape suffixes as in transformer.py; C channels, T content tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from testbed.models.shape import ModelShape
from testbed.models.transformer import Block


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a ViT. An image has ``patch_grid(tokens)`` patches of ``patch`` x ``patch`` RGB pixels."""

    layers: int
    hidden: int
    heads: int
    patch: int
    tokens: int
    classes: int
    mlp_ratio: int = 4
    norm_eps: float = 1e-6
    layer_scale: bool = False

    @property
    def shape(self) -> ModelShape:
        """The sizes that cost formulas need."""
        return ModelShape(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            mlp_hidden=self.mlp_ratio * self.hidden,
            tokens=self.tokens,
            class_tokens=1,
            patch_values=3 * self.patch**2,
            classes=self.classes,
        )


def patch_grid(tokens: int) -> tuple[int, int]:
    """(rows, columns) of the most nearly square grid of ``tokens`` patches."""
    rows = max(r for r in range(1, math.isqrt(tokens) + 1) if tokens % r == 0)
    return rows, tokens // rows


class VisionTransformer(nn.Module):
    """Patches and a class token go through the blocks; the head classifies the class token's last state."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.config = config
        c = config
        self.patch_embed = nn.Linear(3 * c.patch**2, c.hidden)
        self.class_token = nn.Parameter(torch.zeros(1, 1, c.hidden))
        self.position = nn.Parameter(torch.zeros(1, 1 + c.tokens, c.hidden))  # row 0 is the class token's
        self.blocks = nn.ModuleList(
            Block(c.hidden, c.heads, c.mlp_ratio * c.hidden, c.norm_eps, c.layer_scale) for _ in range(c.layers)
        )
        self.norm = nn.LayerNorm(c.hidden, eps=c.norm_eps)
        self.head = nn.Linear(c.hidden, c.classes)

    @property
    def shape(self) -> ModelShape:
        """The sizes that cost formulas need."""
        return self.config.shape

    def patches(self, pixels_BCHW: Tensor) -> Tensor:
        """[B, 3, rows*patch, columns*patch] -> [B, tokens, 3*patch*patch], row by row."""
        p = self.config.patch
        x = pixels_BCHW.unfold(2, p, p).unfold(3, p, p)  # [B, C, rows, columns, p, p]
        return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def embed_class(self, batch: int = 1) -> Tensor:
        """The class token with its position, [B, 1, D]."""
        return (self.class_token + self.position[:, :1]).expand(batch, -1, -1)

    def embed_content(self, pixels_BCHW: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Content tokens ``start`` to ``stop`` with their positions, [B, stop - start, D]."""
        stop = self.config.tokens if stop is None else stop
        return self.patch_embed(self.patches(pixels_BCHW)[:, start:stop]) + self.position[:, 1 + start : 1 + stop]

    def embed(self, pixels_BCHW: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of the sequence (row 0 is the class token), [B, stop - start, D]."""
        stop = self.shape.sequence if stop is None else stop
        content = self.embed_content(pixels_BCHW, max(start - 1, 0), max(stop - 1, 0))
        return content if start > 0 else torch.cat([self.embed_class(pixels_BCHW.shape[0]), content], dim=1)

    def classify(self, x_BD: Tensor) -> Tensor:
        """Logits [B, classes] of normalized last states of the class token [B, D]."""
        return self.head(x_BD)

    def outputs(self, x_SD: Tensor) -> tuple[Tensor, Tensor]:
        """(normalized content rows [T, D], logits [classes]) of one input, from the last block's output [S, D]."""
        x_SD = self.norm(x_SD)
        return x_SD[1:], self.classify(x_SD[:1])[0]

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels [B, 3, height, width] -> logits [B, classes]."""
        x_BSD = self.embed(pixels_BCHW)
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return self.classify(self.norm(x_BSD)[:, 0])
