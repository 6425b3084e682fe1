"""The Vision Transformer: patches, slices of the embedding, PyTorch's own encoder, cost formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from testbed.models.vit import VisionTransformer, VitConfig, patch_grid
from testbed.models.weights import ModelChoice, build_model

TINY = ModelChoice("tiny", layers=2, hidden=24, heads=3, patch=4, classes=5, pretrained=False)


@given(st.integers(1, 4096))
def test_patch_grid_is_the_most_nearly_square_one(tokens):
    rows, columns = patch_grid(tokens)
    assert rows * columns == tokens and rows <= columns
    assert not any(tokens % side == 0 and side * side <= tokens for side in range(rows + 1, columns))


@settings(max_examples=25)
@given(tokens=st.integers(1, 24), data=st.data())
def test_slices_of_the_embedding_are_its_rows(tokens, data):
    model = build_model(TINY, tokens, seed=0)
    rows, columns = patch_grid(tokens)
    pixels = torch.randn(2, 3, rows * 4, columns * 4, generator=torch.Generator().manual_seed(tokens))
    start = data.draw(st.integers(0, tokens))
    stop = data.draw(st.integers(start + 1, tokens + 1))
    whole = model.embed(pixels)
    assert whole.shape == (2, tokens + 1, 24)
    torch.testing.assert_close(model.embed(pixels, start, stop), whole[:, start:stop])


def test_patches_go_row_by_row_with_values_in_channel_row_column_order():
    model = build_model(TINY, 6, seed=0)  # 2 rows of 3 patches
    pixels = torch.arange(3 * 8 * 12.0).reshape(1, 3, 8, 12)
    patches = model.patches(pixels)
    assert patches.shape == (1, 6, 48)
    torch.testing.assert_close(patches[0, 4], pixels[0, :, 4:8, 4:8].flatten())


def test_linear_patch_embedding_equals_a_convolution():
    model = build_model(TINY, 6, seed=0)
    pixels = torch.randn(1, 3, 8, 12)
    kernel = model.patch_embed.weight.unflatten(1, (3, 4, 4))
    expected = nn.functional.conv2d(pixels, kernel, model.patch_embed.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.embed_content(pixels) - model.position[:, 1:], expected)


@pytest.mark.parametrize("layer_scale", [False, True])
def test_blocks_equal_the_encoder_layers_of_pytorch(layer_scale):
    config = VitConfig(
        layers=2, hidden=24, heads=3, patch=4, tokens=6, classes=5, norm_eps=1e-5, layer_scale=layer_scale
    )
    model = VisionTransformer(config).eval()
    x_BSD = torch.randn(2, 7, 24)
    expected = x_BSD
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(24, 3, 96, dropout=0, activation="gelu", batch_first=True, norm_first=True)
        attn, mlp, ones = block.attn, block.mlp, torch.ones(24)
        ls1, ls2 = (torch.rand(24), torch.rand(24)) if layer_scale else (ones, ones)
        if layer_scale:
            block.ls1.data, block.ls2.data = ls1, ls2
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": torch.cat([attn.q.weight, attn.k.weight, attn.v.weight]),
                "self_attn.in_proj_bias": torch.cat([attn.q.bias, attn.k.bias, attn.v.bias]),
                # Layer scale equals scaled rows of the last matrix.
                "self_attn.out_proj.weight": attn.proj.weight * ls1[:, None],
                "self_attn.out_proj.bias": attn.proj.bias * ls1,
                "linear1.weight": mlp.fc1.weight,
                "linear1.bias": mlp.fc1.bias,
                "linear2.weight": mlp.fc2.weight * ls2[:, None],
                "linear2.bias": mlp.fc2.bias * ls2,
                **{f"norm{i}.{k}": v for i in (1, 2) for k, v in getattr(block, f"norm{i}").state_dict().items()},
            }
        )
        expected = layer.eval()(expected)
        x_BSD = block(x_BSD)
    torch.testing.assert_close(x_BSD, expected, atol=1e-5, rtol=1e-4)


def test_shape_counts_the_linear_layers_parameters():
    # A linear layer costs one MAC per weight and token; scores and weighted sum are counted separately.
    model = build_model(TINY, 6, seed=0)
    shape = model.shape
    per_block = sum(p.numel() for p in model.blocks[0].parameters() if p.dim() == 2)
    assert (shape.query(1) + shape.keys_values(1) + shape.finish(1)).macs == per_block
    assert shape.embed(1).macs == model.patch_embed.weight.numel()
    assert shape.head().macs == model.head.weight.numel()
    assert shape.sequence == 7
