"""Decoders: blocks computed in parts equal the model, causality, rotary embeddings, cost formulas."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.models.decoder import causal_mask
from testbed.models.gpt2 import Gpt2, Gpt2Config
from testbed.models.llama import Llama, LlamaConfig, Rotary, RotaryScaling, halves_from_interleaved

LLAMA = LlamaConfig(2, 24, 4, 2, 8, 40, 50, 1e-5, Rotary(8, 1000.0), tied=False)  # 4 heads of 8, more than 24
GPT2 = Gpt2Config(2, 24, 4, 96, 50, 20)
SCALING = RotaryScaling(factor=8, low_factor=1, high_factor=4, original_positions=64)


def build(config: LlamaConfig | Gpt2Config) -> Llama | Gpt2:
    torch.manual_seed(0)
    model = Llama(config) if isinstance(config, LlamaConfig) else Gpt2(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return model.eval().requires_grad_(False)


MODELS = {"llama": build(LLAMA), "gpt2": build(GPT2)}
IDS = torch.randint(0, 50, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=20)
@given(data=st.data())
def test_blocks_computed_in_slices_equal_the_model(name, data):
    """Sequence parallelism: each device computes its own rows from these and all rows before them."""
    model = MODELS[name]
    stops = sorted(data.draw(st.sets(st.integers(1, 19), max_size=4)) | {20})
    slices = list(zip([0, *stops], stops, strict=False))
    x_BSD = torch.cat([model.embed(IDS, start, stop) for start, stop in slices], dim=1)
    for block in model.blocks:
        rows = []
        for start, stop in slices:
            h_BSD = block.norm1(x_BSD[:, :stop])
            earlier = block.attn.keys_values(h_BSD[:, :start])  # as received
            own = block.attn.keys_values(h_BSD[:, start:], start)
            k, v = (torch.cat(pair, dim=-2) for pair in zip(earlier, own, strict=True))
            query = block.attn.query(h_BSD[:, start:], start)
            mixed = block.attn.mix(query, k, v, causal_mask(stop - start, stop))
            rows.append(block.finish(x_BSD[:, start:stop], mixed))
        x_BSD = torch.cat(rows, dim=1)
    torch.testing.assert_close(model.logits(model.norm(x_BSD)), model(IDS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_no_token_attends_to_a_later_one(name):
    model, other = MODELS[name], IDS.clone()
    other[:, 12] = (other[:, 12] + 1) % 50
    before, after = model(IDS), model(other)
    assert before.shape == (2, 20, 50)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert (before[:, 12:] - after[:, 12:]).abs().amax((0, 2)).min() > 1e-3


def test_mask_of_the_last_rows():
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize("name", MODELS)
def test_logits_depend_on_the_order_of_tokens(name):
    swapped = IDS.clone()
    swapped[:, [3, 4]] = IDS[:, [4, 3]]
    assert not torch.allclose(MODELS[name](IDS)[:, -1], MODELS[name](swapped)[:, -1], atol=1e-3)


@settings(max_examples=20)
@given(shift=st.integers(0, 500), scaled=st.booleans())
def test_scores_depend_on_distances_only(shift, scaled):
    rotary = Rotary(16, 10_000.0, SCALING if scaled else None)
    q, k = torch.randn(2, 1, 1, 9, 16, generator=torch.Generator().manual_seed(0))
    scores = [rotary.apply(q, at) @ rotary.apply(k, at).mT for at in (0, shift)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-3, rtol=1e-3)


def test_pair_i_rotates_by_position_times_theta_to_the_minus_2i_over_width():
    rotary = Rotary(4, 100.0)
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    angles = torch.tensor([7.0, 7.0 / 10])  # 100 ** (2 / 4) = 10
    torch.testing.assert_close(rotary.apply(x, 7), torch.cat([angles.cos(), angles.sin()])[None])


def test_scaling_lowers_low_frequencies_only():
    plain, scaled = Rotary(32, 10_000.0).frequencies(), Rotary(32, 10_000.0, SCALING).frequencies()
    rotations = 64 * plain / (2 * torch.pi)  # within the original context
    torch.testing.assert_close(scaled[rotations > 4], plain[rotations > 4])
    torch.testing.assert_close(scaled[rotations < 1], plain[rotations < 1] / 8)
    between = (rotations > 1) & (rotations < 4)
    assert between.any() and (scaled[between] < plain[between]).all() and (scaled[between] > plain[between] / 8).all()


def test_interleaved_weights_give_the_same_scores():
    torch.manual_seed(0)
    heads, width, rotary = 3, 8, Rotary(8, 50.0)
    wq, wk, x = torch.randn(heads * width, 12), torch.randn(heads * width, 12), torch.randn(6, 12)

    def interleaved(w):
        """Pairs as complex numbers: 2i and 2i + 1."""
        z = torch.view_as_complex((x @ w.T).unflatten(-1, (heads, width // 2, 2)).contiguous())
        angles = torch.arange(6.0)[:, None, None] * rotary.frequencies()
        return torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles)).flatten(-2).transpose(0, 1)

    def halves(w):
        rows = (x @ halves_from_interleaved(w, heads).T).unflatten(-1, (heads, width)).transpose(0, 1)
        return rotary.apply(rows, 0)

    torch.testing.assert_close(halves(wq) @ halves(wk).mT, interleaved(wq) @ interleaved(wk).mT)


def test_angles_computed_in_inference_serve_training():
    rotary = Rotary(8, 77.0)
    with torch.inference_mode():
        rotary.apply(torch.ones(3, 8), 5)
    x = torch.ones(3, 8, requires_grad=True)
    rotary.apply(x, 5).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MODELS)
def test_shape_counts_the_linear_layers_parameters(name):
    # A linear layer costs one MAC per weight and token; scores and weighted sum are counted separately.
    model = MODELS[name]
    shape = model.config.shape(20)
    per_block = sum(p.numel() for p in model.blocks[0].parameters() if p.dim() == 2)
    assert (shape.query(1) + shape.keys_values(1) + shape.finish(1)).macs == per_block
    assert shape.head().macs == model.token_embed.weight.numel() and shape.embed(20).macs == 0
    keys = model.blocks[0].attn.keys_values(torch.zeros(1, 20, 24))[0]
    assert shape.key_width == keys.shape[1] * keys.shape[3] and shape.sequence == 20
    queries = model.blocks[0].attn.query(torch.zeros(1, 20, 24))
    assert shape.attend(3, 5).macs == 2 * 3 * 5 * queries.shape[1] * queries.shape[3]


def test_a_tied_head_is_the_embedding():
    model = build(replace(LLAMA, tied=True))
    assert model.head is None and not any(name.startswith("head.") for name in model.state_dict())
    torch.testing.assert_close(model.logits(torch.eye(24)[None])[0], model.token_embed.weight.T)


def test_more_tokens_than_positions_raise():
    with pytest.raises(ValueError, match="21 tokens; expected at most 20, the positions of the model"):
        MODELS["gpt2"](torch.zeros(1, 21, dtype=torch.int64))
