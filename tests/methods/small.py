"""Models and shapes that the tests of methods share.

Small models have random parameters only, so that a forgotten bias, position or layer scale changes the output.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from testbed.models.shape import ModelShape
from testbed.models.vit import VisionTransformer, VitConfig, patch_grid

# ViT-Base as the paper counts it: layers only, no class token, no embedding, no head.
PAPER = ModelShape(
    layers=12, hidden=768, heads=12, mlp_hidden=3072, tokens=1024, class_tokens=0, patch_values=0, classes=0
)
VIT = replace(PAPER, class_tokens=1, patch_values=768, classes=1000)
U_BITS = 3 * 256 * 768 * 32  # what a device receives when all embeddings are gathered once, N = 4

CONFIGS = {
    "plain": VitConfig(layers=4, hidden=48, heads=4, patch=2, tokens=21, classes=7),
    "layer_scale": VitConfig(layers=4, hidden=96, heads=12, patch=4, tokens=50, classes=10, layer_scale=True),
}


def small_model(size: str) -> VisionTransformer:
    """A model of ``CONFIGS[size]`` in evaluation mode."""
    torch.manual_seed(1)
    model = VisionTransformer(CONFIGS[size])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("weight"):
                parameter.uniform_(-0.5, 0.5)
    return model.eval()


def pixels(model: VisionTransformer) -> Tensor:
    """One random image of the model's size, [1, 3, height, width]."""
    rows, columns = patch_grid(model.config.tokens)
    patch = model.config.patch
    return torch.randn(1, 3, rows * patch, columns * patch, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def layer_inputs(model: VisionTransformer, inputs: Tensor) -> list[Tensor]:
    """The residual stream [S, D] before each layer of the plain model, and the normalized last one."""
    x_BSD = model.embed(inputs)
    states = []
    for block in model.blocks:
        states.append(x_BSD[0])
        x_BSD = block(x_BSD)
    return [*states, model.norm(x_BSD)[0]]


def random_codebooks(model: VisionTransformer, groups: int, codebook_size: int) -> Tensor:
    """Random codewords [L, G, K, D / G]."""
    width = model.config.hidden // groups
    sizes = (model.config.layers, groups, codebook_size, width)
    return torch.randn(sizes, generator=torch.Generator().manual_seed(3))
