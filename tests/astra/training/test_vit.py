"""The batched simulation against the one-sample reference of inference, and the meaning of its masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from testbed.astra.quantizer import Quantizer
from testbed.astra.reference_vit import simulate
from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings
from testbed.astra.training.vit import AstraVit, device_layout, random_shares
from testbed.models.vit import VisionTransformer, VitConfig
from tests.methods.small import random_codebooks, small_model


def images(model: VisionTransformer, count: int) -> Tensor:
    rows = {21: (3, 7), 50: (5, 10), 12: (3, 4)}[model.config.tokens]
    height, width = (side * model.config.patch for side in rows)
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def random_model(layers: int) -> VisionTransformer:
    torch.manual_seed(layers)
    model = VisionTransformer(VitConfig(layers=layers, hidden=24, heads=3, patch=2, tokens=12, classes=5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.3, 0.3)
    return model.eval()


@settings(max_examples=40)
@given(
    layers=st.integers(1, 4),
    groups=st.sampled_from([1, 2, 4, 8]),
    devices=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_it_equals_the_inference_simulation(layers: int, groups: int, devices: int, seed: int) -> None:
    model = random_model(layers)
    codebooks = random_codebooks(model, groups, 16)
    student = AstraVit(model, VectorQuantizer(codebooks, VqSettings(noise=1.0))).eval()
    shares = random_shares(12, devices, torch.Generator().manual_seed(seed))
    inputs = images(model, 3)
    found = student(inputs, shares, keep_states=True)
    for index in range(3):
        expected = simulate(model, Quantizer(codebooks), inputs[index : index + 1], shares)
        torch.testing.assert_close(found.logits[index], expected.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.norm(found.states[-1][index]), expected.hidden, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", ["plain", "layer_scale"])
@torch.no_grad()
def test_one_device_is_the_plain_model(size: str) -> None:
    model = small_model(size)
    inputs = images(model, 2)
    found = AstraVit(model)(inputs, [model.config.tokens])
    torch.testing.assert_close(found.logits, model(inputs), atol=1e-5, rtol=1e-5)
    assert found.commitment == 0 and found.states == []


def test_layout_of_distributed_and_single_class_tokens() -> None:
    # rows: class tokens, then tokens 0 and 1 of device 0, token 2 of device 1; columns: the same, then quantized tokens
    assert device_layout([2, 1], range(2)).visible.int().tolist() == [
        [1, 0, 1, 1, 0, 0, 0, 1],
        [0, 1, 0, 0, 1, 1, 1, 0],
        [1, 0, 1, 1, 0, 0, 0, 1],
        [1, 0, 1, 1, 0, 0, 0, 1],
        [0, 1, 0, 0, 1, 1, 1, 0],
    ]
    single = device_layout([2, 1], range(1))
    assert single.class_copies == 1
    assert single.visible.int().tolist() == [
        [1, 1, 1, 0, 0, 0, 1],
        [1, 1, 1, 0, 0, 0, 1],
        [1, 1, 1, 0, 0, 0, 1],
        [0, 0, 0, 1, 1, 1, 0],
    ]
    assert device_layout([2, 1], []).visible.shape == (3, 6)


@torch.no_grad()
def test_the_single_class_token_is_unseen_by_other_devices_and_sees_the_others_quantized() -> None:
    model = random_model(3)
    student = AstraVit(model, VectorQuantizer(random_codebooks(model, 2, 16)), "single").eval()
    inputs, shares = images(model, 2), [5, 4, 3]
    before = student(inputs, shares, keep_states=True)
    model.class_token += torch.linspace(-1, 1, 24)
    after = student(inputs, shares, keep_states=True)
    assert not torch.allclose(before.states[0][:, :5], after.states[0][:, :5])
    torch.testing.assert_close(before.states[0][:, 5:], after.states[0][:, 5:])
    # in one layer the class token sees of device 2 only its codes
    one = AstraVit(random_model(1), VectorQuantizer(random_codebooks(random_model(1), 2, 16)), "single").eval()
    assert one.quantizer is not None
    moved = inputs.clone()
    moved[:, :, 4:, 6:] += 1e-4  # the last patch
    assert not torch.equal(moved, inputs)
    torch.testing.assert_close(one(inputs, shares).logits, one(moved, shares).logits, atol=1e-7, rtol=0)
    assert (one(inputs, [12]).logits - one(moved, [12]).logits).abs().max() > 1e-7


def test_gradients_reach_every_parameter() -> None:
    model = random_model(2).train()
    student = AstraVit(model, VectorQuantizer(random_codebooks(model, 2, 16), VqSettings(noise=0.3)))
    found = student(images(model, 4), [5, 4, 3])
    (found.logits.square().mean() + 1e-3 * found.commitment).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # softmax ignores a constant that is added to all keys
        assert parameter.grad.abs().max() > 1e-6 or name.endswith("attn.k.bias"), name


@given(tokens=st.integers(1, 60), devices=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_random_cuts_cover_all_tokens(tokens: int, devices: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    if devices > tokens:
        with pytest.raises(ValueError, match=f"allowed: 1 to {tokens}"):
            random_shares(tokens, devices, generator)
        return
    shares = random_shares(tokens, devices, generator)
    assert len(shares) == devices and sum(shares) == tokens and min(shares) >= 1


def test_random_cuts_reach_every_cut() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = {tuple(random_shares(5, 3, generator)) for _ in range(200)}
    assert seen == {(1, 1, 3), (1, 2, 2), (1, 3, 1), (2, 1, 2), (2, 2, 1), (3, 1, 1)}


def test_what_does_not_fit_is_named() -> None:
    model = random_model(2)
    with pytest.raises(ValueError, match=r"shares are \[6, 5\]; expected positive numbers of sum 12"):
        AstraVit(model)(images(model, 1), [6, 5])
    with pytest.raises(ValueError, match="2 devices need a quantizer"):
        AstraVit(model)(images(model, 1), [6, 6])
    with pytest.raises(ValueError, match="codebooks are for 3 layers of 24 numbers; the model has 2 x 24"):
        AstraVit(model, VectorQuantizer(torch.zeros(3, 2, 4, 12)))
