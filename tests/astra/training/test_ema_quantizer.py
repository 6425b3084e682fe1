"""Codebooks in training: they follow clusters, restart dead codewords, pass gradients, and add noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from testbed.astra.quantizer import Quantizer
from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings, nearest_codes
from testbed.errors import ConfigError


def clusters(batch: int, seed: int, spread: float = 0.05) -> tuple[Tensor, Tensor]:
    """Tokens [batch, 5, 2] around four fixed centers [4, 2], as many at each."""
    centers = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(4, (batch, 5), generator=generator)
    return centers[which] + spread * torch.randn(batch, 5, 2, generator=generator), centers


def quantizer(codebooks: Tensor, **chosen: Any) -> VectorQuantizer:
    return VectorQuantizer(codebooks, VqSettings(**chosen))


@settings(max_examples=30)
@given(
    groups=st.sampled_from([1, 2, 4]),
    num_quantizers=st.integers(1, 3),
    tokens=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_codes_and_codewords_are_those_of_inference(groups: int, num_quantizers: int, tokens: int, seed: int) -> None:
    torch.manual_seed(seed)
    codebooks, x = torch.randn(3, num_quantizers * groups, 16, 8 // groups), torch.randn(2, tokens, 8)
    vq, reference = quantizer(codebooks, num_quantizers=num_quantizers).eval(), Quantizer(codebooks, num_quantizers)
    received, commitment = vq(1, x)
    codes = reference.encode(1, x.flatten(0, 1))
    expected = reference.decode(1, codes).view_as(x)
    assert torch.equal(nearest_codes(x.flatten(0, 1), codebooks[1, :groups]), codes[:, :groups])
    assert torch.equal(received, expected)
    assert commitment.item() == pytest.approx((x - expected).square().sum(-1).mean().item(), rel=1e-5)


def test_codewords_converge_to_the_means_of_their_clusters() -> None:
    torch.manual_seed(0)
    vq = quantizer(torch.tensor([[0.5, 0.4], [-0.3, 0.6], [-0.4, -0.5], [0.2, -0.1]])[None, None], decay=0.9)
    for step in range(100):
        vq(0, clusters(64, step)[0])
    torch.testing.assert_close(vq.codebooks_LIKd[0, 0], clusters(1, 0)[1], atol=0.02, rtol=0)
    torch.testing.assert_close(vq.counts_LIK[0, 0], torch.ones(4), atol=0.3, rtol=0)


def test_one_step_of_the_moving_average_by_hand() -> None:
    vq = quantizer(torch.tensor([[0.0], [10.0]])[None, None], decay=0.75, dead_below=0)
    vq(0, torch.tensor([[[1.0], [3.0], [2.0], [14.0]]]))
    # in units of even use: 3 of 4 tokens are 1.5, so counts 0.75 + 0.25 * 1.5 and sums 0.25 * 2 / 4 * 6, and so on
    counts = torch.tensor([1.125, 0.875])
    torch.testing.assert_close(vq.counts_LIK[0, 0], counts)
    expected = torch.tensor([0.25 * 0.5 * 6, 7.5 + 0.25 * 0.5 * 14]) / counts
    torch.testing.assert_close(vq.codebooks_LIKd[0, 0, :, 0], expected, atol=1e-4, rtol=0)


def test_groups_and_layers_are_independent() -> None:
    torch.manual_seed(0)
    codebooks = torch.randn(2, 2, 4, 1)
    vq = quantizer(codebooks, decay=0.9, dead_below=0)
    x = torch.cat([clusters(32, 1)[0][..., :1], torch.full((32, 5, 1), 7.0)], dim=-1)
    for _ in range(80):
        vq(1, x)
    assert torch.equal(vq.codebooks_LIKd[0], codebooks[0])
    nearest_seven = (vq.codebooks_LIKd[1, 1, :, 0] - 7).abs().min().item()
    assert nearest_seven < 0.01 and (vq.codebooks_LIKd[1, 0].abs() < 3).all()
    assert (vq.used_LIK[0].sum(), vq.used_LIK[1].sum()) == (0, 2 * 80 * 160)


def test_dead_codewords_restart_from_tokens() -> None:
    torch.manual_seed(0)
    far = torch.full((16, 2), 100.0)
    far[0] = 0
    vq = quantizer(far[None, None], decay=0.9)
    before = vq.eval()(0, clusters(64, 0)[0])[1]
    vq.train()
    for step in range(60):
        vq(0, clusters(64, step)[0])
    assert vq.codebooks_LIKd.abs().max() < 2
    vq.reset_usage()
    after = vq(0, clusters(64, 99)[0])[1]
    assert after < before / 10
    assert vq.perplexity()[0, 0] > 8
    frozen = quantizer(far[None, None], decay=0.9, dead_below=0)
    for step in range(60):
        frozen(0, clusters(64, step)[0])
    assert (frozen.codebooks_LIKd[0, 0, 1:] > 90).all(), "without a restart they stay where no token is"


def test_gradients_pass_straight_through_and_commitment_pulls_to_the_codeword() -> None:
    vq = quantizer(torch.tensor([[0.0, 0.0], [4.0, 4.0]])[None, None], noise=0.5)
    x = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]], requires_grad=True)
    received, commitment = vq(0, x)
    weights = torch.tensor([[[1.0, -2.0], [0.5, 3.0]]])
    (gradient,) = torch.autograd.grad((received * weights).sum(), x, retain_graph=True)
    assert torch.equal(gradient, weights)
    (gradient,) = torch.autograd.grad(commitment, x)
    torch.testing.assert_close(gradient, torch.tensor([[[1.0, 2.0], [-1.0, 1.0]]]))  # 2 (x - codeword) / 2 tokens


@settings(max_examples=30)
@given(groups=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_rotation_trick_gradients_are_those_of_a_constant_rotation_and_scale(groups: int, seed: int) -> None:
    torch.manual_seed(seed)
    vq = quantizer(torch.randn(1, groups, 16, 4), noise=0.5, gradient="rotation_trick")
    x = torch.randn(2, 5, 4 * groups, requires_grad=True)
    weights = torch.randn(2, 5, 4 * groups)
    received, _ = vq.eval()(0, x)
    (gradient,) = torch.autograd.grad((received * weights).sum(), x)
    parts = (tensor.detach().reshape(-1, 4) for tensor in (x, received, weights, gradient))
    for part_x, part_q, part_w, found in zip(*parts, strict=True):
        matrix = _rotation_and_scale(part_x, part_q)
        torch.testing.assert_close(matrix @ part_x, part_q, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found, matrix.T @ part_w, atol=1e-4, rtol=1e-3)


def _rotation_and_scale(x: Tensor, q: Tensor) -> Tensor:
    """The matrix that rotates x to q in their plane and scales it, by an orthonormal basis of that plane."""
    first = x / x.norm()
    second = q - (q @ first) * first
    second = second / second.norm()
    cosine, sine = q @ first / q.norm(), q @ second / q.norm()
    plane = torch.stack([first, second])
    rotation = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    return q.norm() / x.norm() * (torch.eye(len(x)) - plane.T @ plane + plane.T @ rotation @ plane)


def test_a_stage_follows_the_residual_of_the_stage_before() -> None:
    torch.manual_seed(0)
    first = torch.tensor([[-10.0], [10.0]])
    vq = quantizer(torch.stack([first, torch.tensor([[-0.6], [0.4]])])[None], num_quantizers=2, decay=0.9)
    x = first[torch.randint(2, (64, 5))] + torch.tensor([[-1.0], [1.0]])[torch.randint(2, (64, 5))]
    for _ in range(80):
        received, commitment = vq(0, x)
    torch.testing.assert_close(vq.codebooks_LIKd[0, 1, :, 0], torch.tensor([-1.0, 1.0]), atol=0.1, rtol=0)
    assert commitment < 0.02 and (received - x).abs().max() < 0.3


def test_noise_has_the_mean_and_variance_of_the_residual() -> None:
    torch.manual_seed(0)
    codebooks = torch.zeros(1, 1, 2, 3)
    codebooks[0, 0, 1] = 1000.0
    vq = quantizer(codebooks, noise=1.0, decay=0.999999, dead_below=0)
    mean, std = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.1, 1.0, 3.0])
    x = mean + std * torch.randn(200, 50, 3)
    for part in x.split(50):  # the first batches weigh equally
        vq(0, part)
    torch.testing.assert_close(vq.residual_mean_LD[0], x.mean((0, 1)), atol=1e-2, rtol=0)
    codeword = vq.codebooks_LIKd[0, 0, 0].clone()
    noise = vq(0, x)[0] - codeword
    torch.testing.assert_close(noise.mean((0, 1)), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(noise.std((0, 1)), std, atol=0, rtol=0.05)


def test_noise_is_scaled_by_lambda_and_absent_in_eval() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 50, 4)
    codebooks = torch.randn(1, 2, 8, 2)
    spreads = []
    for noise in (0.0, 0.3, 1.0):
        vq = quantizer(codebooks, noise=noise)
        blurred = vq(0, x)[0]
        spreads.append((blurred - quantizer(codebooks)(0, x)[0]).std().item())
        vq.eval()
        assert torch.equal(vq(0, x)[0], vq(0, x)[0])
        codes = nearest_codes(x.flatten(0, 1), vq.codebooks_LIKd[0])
        assert torch.equal(vq(0, x)[0].flatten(0, 1), Quantizer(vq.codebooks_LIKd).decode(0, codes))
    assert spreads[0] == 0
    assert spreads[1] == pytest.approx(0.3 * spreads[2], rel=0.05) and spreads[2] > 0.1


def test_eval_changes_nothing() -> None:
    vq = quantizer(torch.randn(1, 2, 8, 2), noise=1.0).eval()
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq(0, torch.randn(3, 7, 4))
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())


def test_perplexity_counts_codewords_in_use() -> None:
    vq = quantizer(torch.arange(8.0)[None, None, :, None], dead_below=0, decay=0.5)
    assert vq.perplexity().isnan().all()
    vq.used_LIK[0, 0] = torch.tensor([5, 5, 5, 5, 0, 0, 0, 0])
    assert vq.perplexity()[0, 0].item() == pytest.approx(4)
    vq.reset_usage()
    vq(0, torch.full((1, 10, 1), 3.0))
    assert vq.perplexity()[0, 0].item() == pytest.approx(1)


def test_gradients_and_stages_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="vq.gradient=turn: unknown; allowed: rotation_trick, straight_through"):
        quantizer(torch.zeros(1, 1, 2, 2), gradient="turn")
    with pytest.raises(ConfigError, match="astra.num_quantizers=2: must be a positive divisor of 3, the codebooks"):
        quantizer(torch.zeros(1, 3, 2, 2), num_quantizers=2)


@pytest.mark.parametrize("chosen", [{"decay": 1.0}, {"decay": -0.1}, {"dead_below": 1.5}, {"noise": -1.0}])
def test_settings_outside_their_range(chosen: dict[str, float]) -> None:
    ((key, value),) = chosen.items()
    with pytest.raises(ConfigError, match=f"vq.{key}={value:g}: must be 0 or more"):
        quantizer(torch.zeros(1, 1, 2, 2), **chosen)
