"""The quantizer against a definition in distances, and what it refuses."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.astra.quantizer import Quantizer, check_quantizer
from testbed.errors import ConfigError


def random_quantizer(layers, groups, size, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Quantizer(torch.randn(layers, groups, size, width, generator=generator))


sizes = {
    "groups": st.sampled_from([1, 2, 3, 8]),
    "size": st.sampled_from([2, 8, 64]),
    "width": st.integers(1, 9),
    "tokens": st.integers(0, 20),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=60)
@given(**sizes)
def test_encode_finds_the_nearest_codeword_of_each_group(groups, size, width, tokens, seed):
    quantizer = random_quantizer(2, groups, size, width, seed)
    x = torch.randn(tokens, groups * width, generator=torch.Generator().manual_seed(seed + 1))
    codes = quantizer.encode(1, x)
    assert codes.shape == (tokens, groups) and codes.dtype == torch.int64
    x_PGd = x.double().unflatten(1, (groups, width))
    distances = (x_PGd[:, :, None] - quantizer.codebooks_LIKd[1].double()).square().sum(-1)  # [P, G, K]
    chosen = distances.gather(2, codes[:, :, None]).squeeze(2)
    torch.testing.assert_close(chosen, distances.amin(2), atol=1e-5, rtol=0)
    other = torch.randint(size, (tokens, groups), generator=torch.Generator().manual_seed(seed))
    expected = distances.gather(2, other[:, :, None]).squeeze(2) - distances.amin(2)
    torch.testing.assert_close(quantizer.excess(1, x, other), expected, atol=1e-9, rtol=1e-9)


@settings(max_examples=60)
@given(**sizes)
def test_decode_puts_the_codewords_side_by_side_and_encodes_back(groups, size, width, tokens, seed):
    quantizer = random_quantizer(2, groups, size, width, seed)
    codes = torch.randint(size, (tokens, groups), generator=torch.Generator().manual_seed(seed))
    decoded = quantizer.decode(1, codes)
    assert decoded.shape == (tokens, groups * width)
    for group in range(groups):
        expected = quantizer.codebooks_LIKd[1, group][codes[:, group]]
        assert torch.equal(decoded[:, group * width : (group + 1) * width], expected)
    assert (quantizer.excess(1, decoded, quantizer.encode(1, decoded)) < 1e-5).all()


@settings(max_examples=30)
@given(num_quantizers=st.integers(2, 3), **sizes)
def test_stages_quantize_residuals_and_add_up(num_quantizers, groups, size, width, tokens, seed):
    codebooks = random_quantizer(2, num_quantizers * groups, size, width, seed).codebooks_LIKd
    quantizer = Quantizer(codebooks, num_quantizers)
    x = torch.randn(tokens, groups * width, generator=torch.Generator().manual_seed(seed + 1))
    codes, residual = quantizer.encode(1, x), x
    assert (quantizer.indices, quantizer.groups) == (num_quantizers * groups, groups)
    for stage, own in enumerate(codes.split(groups, dim=1)):
        alone = Quantizer(codebooks[:, stage * groups : (stage + 1) * groups])
        assert torch.equal(own, alone.encode(1, residual))
        residual = residual - alone.decode(1, own)
    torch.testing.assert_close(quantizer.decode(1, codes), x - residual, atol=1e-5, rtol=1e-5)
    assert tokens == 0 or quantizer.excess(1, x, codes).max() < 1e-4
    assert (quantizer.excess(1, x, torch.zeros_like(codes)) >= 0).all()


def test_excess_is_never_negative_and_zero_for_the_best():
    quantizer = random_quantizer(1, 4, 32, 6)
    x = torch.randn(50, 24)
    excess = quantizer.excess(0, x, torch.randint(32, (50, 4)))
    assert excess.dtype == torch.float64 and (excess >= 0).all() and excess.max() > 0.1
    assert quantizer.excess(0, x, quantizer.encode(0, x)).max() < 1e-5


def test_equally_near_codewords_give_the_lowest_index():
    quantizer = Quantizer(torch.tensor([[[[1.0], [-1.0], [1.0], [-1.0]]]]))
    assert quantizer.encode(0, torch.tensor([[0.0], [2.0], [-2.0]])).flatten().tolist() == [0, 0, 1]


def test_slices_of_a_larger_tensor_can_be_encoded():
    quantizer = random_quantizer(1, 2, 8, 5)
    x = torch.randn(6, 30)
    assert torch.equal(quantizer.encode(0, x[1::2, 7:17]), quantizer.encode(0, x[1::2, 7:17].contiguous()))


def test_shapes_that_do_not_fit():
    quantizer = random_quantizer(1, 2, 8, 5)
    x, codes = torch.zeros(3, 10), torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=re.escape("tokens are [3, 9]; expected [tokens, 10]")):
        quantizer.encode(0, x[:, :9])
    with pytest.raises(ValueError, match=re.escape("tokens are [1, 3, 10]; expected [tokens, 10]")):
        quantizer.encode(0, x[None])
    with pytest.raises(ValueError, match=re.escape("codes are [3, 1]; expected [tokens, 2]")):
        quantizer.decode(0, codes[:, :1])
    with pytest.raises(ValueError, match="codes are for 2 tokens; expected the 3 of x"):
        quantizer.excess(0, x, codes[:2])
    with pytest.raises(
        ValueError,
        match=re.escape("expected float32 [layers, num_quantizers * groups, codebook_size, hidden / groups]"),
    ):
        Quantizer(torch.zeros(2, 8, 5))


@given(st.integers(-5, 800))
def test_groups_must_divide_the_width(groups):
    if groups > 0 and 768 % groups == 0:
        check_quantizer(768, groups, 1024)
    else:
        with pytest.raises(ConfigError, match=f"astra.groups={groups}: must be a positive divisor of .* 768: 1, 2, 3"):
            check_quantizer(768, groups, 1024)


@given(st.integers(-5, 70000) | st.sampled_from([2**n for n in range(20)]))
def test_codebook_sizes_are_powers_of_two(size):
    if size in {2**n for n in range(1, 17)}:
        check_quantizer(768, 32, size)
    else:
        with pytest.raises(ConfigError, match=f"astra.codebook_size={size}: must be a power of two from 2 to 65536"):
            check_quantizer(768, 32, size)
