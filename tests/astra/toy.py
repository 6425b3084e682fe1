"""A task that a tiny ViT learns in seconds: which of a few fixed patterns a noisy image shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings
from testbed.astra.training.vit import AstraVit, ClassTokens
from testbed.models.vit import VisionTransformer, VitConfig

CONFIG = VitConfig(layers=2, hidden=24, heads=3, patch=2, tokens=16, classes=4)


@dataclass(frozen=True)
class Toy:
    """Images [N, 3, 8, 8] and labels [N]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, augmented: bool = False) -> tuple[Tensor, Tensor]:
        pixels = self.pixels[indices]
        return pixels + 0.1 * torch.randn_like(pixels) if augmented else pixels, self.labels[indices]


def toy(count: int, seed: int, noise: float = 1.0) -> Toy:
    """Patterns are the same for every seed."""
    patterns = torch.randn(CONFIG.classes, 3, 8, 8, generator=torch.Generator().manual_seed(77))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CONFIG.classes, (count,), generator=generator)
    return Toy(patterns[labels] + noise * torch.randn(count, 3, 8, 8, generator=generator), labels)


def tiny_model(seed: int = 0) -> VisionTransformer:
    """A model with PyTorch's initial weights."""
    torch.manual_seed(seed)
    model = VisionTransformer(CONFIG)
    torch.nn.init.normal_(model.position, std=0.02)
    return model


def tiny_student(class_tokens: ClassTokens = "distributed", noise: float = 0.3, groups: int = 2) -> AstraVit:
    """Two layers, 8 random codewords in each group."""
    codebooks = torch.randn(2, groups, 8, 24 // groups, generator=torch.Generator().manual_seed(1))
    return AstraVit(tiny_model(), VectorQuantizer(codebooks, VqSettings(noise=noise)), class_tokens)
