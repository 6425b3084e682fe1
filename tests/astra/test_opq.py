"""PCA rotations: orthogonal, balanced over the groups, and equivalent to rotated tokens for quantizers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.astra.opq import check_pre_rotation, pca_rotation
from testbed.astra.quantizer import Quantizer
from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings
from testbed.errors import ConfigError


@settings(max_examples=30)
@given(groups=st.sampled_from([1, 2, 4, 8]), parts=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_components_are_orthogonal_uncorrelated_and_balanced(groups: int, parts: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(400, 16) @ torch.randn(16, 16)
    rotation = pca_rotation(x, groups, parts)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(16), atol=1e-5, rtol=0)
    rotated = x @ rotation.T
    for part in rotated.chunk(parts if groups % parts == 0 else 1, dim=1):
        covariance = torch.cov(part.T)
        torch.testing.assert_close(covariance, covariance.diag().diag(), atol=1e-3, rtol=0)
    logs = rotated.var(0).log()
    spreads = [each.unflatten(0, (groups, -1)).sum(1).std(correction=0) for each in (logs, logs.sort().values)]
    assert spreads[0] <= spreads[1] + 1e-4, "more balanced than components in order of variance"


def test_allocation_by_hand() -> None:
    """Of variances 16, 8, 4 and 2, one group gets the first and the last."""
    x = torch.diag(torch.tensor([2.0, 16.0, 4.0, 8.0]).sqrt())
    x = torch.cat([x, -x])
    rotation = pca_rotation(x, 2).abs()
    assert rotation.argmax(1).tolist() == [1, 0, 3, 2]


@settings(max_examples=30)
@given(num_quantizers=st.integers(1, 2), noise=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 99))
def test_a_rotated_quantizer_is_a_plain_one_of_rotated_tokens(num_quantizers: int, noise: float, seed: int) -> None:
    torch.manual_seed(seed)
    codebooks, x = torch.randn(2, 2 * num_quantizers, 16, 4), torch.randn(3, 5, 8)
    rotation = torch.linalg.qr(torch.randn(2, 8, 8)).Q.contiguous()
    rotated, plain = Quantizer(codebooks, num_quantizers, rotation), Quantizer(codebooks, num_quantizers)
    rows = x.flatten(0, 1)
    codes = rotated.encode(1, rows)
    assert torch.equal(codes, plain.encode(1, rows @ rotation[1].T))
    torch.testing.assert_close(rotated.decode(1, codes), plain.decode(1, codes) @ rotation[1])
    torch.testing.assert_close(
        rotated.excess(1, rows, codes), plain.excess(1, rows @ rotation[1].T, codes), atol=1e-5, rtol=0
    )
    settings = VqSettings(noise=noise, num_quantizers=num_quantizers)
    vq = VectorQuantizer(codebooks, settings, rotation)
    received, commitment = vq.eval()(1, x)
    torch.testing.assert_close(received.flatten(0, 1), rotated.decode(1, codes))
    assert commitment.item() == pytest.approx((x - received).square().sum(-1).mean().item(), rel=1e-4)
    x.requires_grad_(True)
    weights = torch.randn(3, 5, 8)
    (gradient,) = torch.autograd.grad((vq.train()(1, x)[0] * weights).sum(), x)
    torch.testing.assert_close(gradient, weights)
    assert vq.describe()["pre_rotation"] == "pca"


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="astra.pre_rotation=component.*allowed: none, pca"):
        check_pre_rotation("component")
    with pytest.raises(ValueError, match="pre-rotations are .2, 8, 4.; expected .2, 8, 8."):
        Quantizer(torch.zeros(2, 2, 4, 4), rotation_LDD=torch.zeros(2, 8, 4))
