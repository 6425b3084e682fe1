"""Codecs: what comes back is within the stated error, and the bytes are as many as the formula says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from testbed.comm.codecs import BLOCK, CODECS, LARGEST, SPARSE_BLOCK

LOSSY = [name for name, codec in CODECS.items() if codec.lossy]
SIZES = st.one_of(st.integers(0, 3 * BLOCK), st.integers(0, 3 * SPARSE_BLOCK), st.just(40_001))
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-39, 2.0**-126, 1e-30, 1.0, -1.0]


def numbers(size: int, seed: int, exponent: int, spread: int) -> Tensor:
    """Random numbers near 10^exponent, some of them smaller by up to ``spread`` decades, some special."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=generator).clamp(-6, 6) * 10.0**exponent
    x *= 10.0 ** -(torch.rand(size, generator=generator) * spread).float()
    special = torch.rand(size, generator=generator) < 0.1
    x[special] = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), (int(special.sum()),), generator=generator)]
    return x


@pytest.mark.parametrize("name", CODECS)
@given(SIZES, st.integers(0, 2**32), st.integers(-44, 37), st.integers(0, 8))
def test_round_trip_is_within_the_bound(name: str, size: int, seed: int, exponent: int, spread: int) -> None:
    codec = CODECS[name]
    x = numbers(size, seed, min(exponent, 3) if name == "fp16" else exponent, spread)
    message = codec.encode(x)
    assert message.dtype == torch.uint8 and message.shape == (codec.encoded_bytes(size),)
    back = codec.decode(message, x.shape)
    assert back.dtype == torch.float32 and back.shape == x.shape
    error, bound = (back.double() - x.double()).abs(), codec.error_bound(x).double()
    assert (error <= bound).all()
    assert torch.equal(back, x) or codec.lossy


@pytest.mark.parametrize(
    ("name", "ratio"), [("fp32", 1), ("fp16", 2), ("int8", 3.76), ("int4", 7.11), ("topk", 6.4)], ids=str
)
def test_ratios_are_as_stated(name: str, ratio: float) -> None:
    numel = 256 * 768
    assert 4 * numel / CODECS[name].encoded_bytes(numel) == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize(("name", "levels"), [("int8", 127), ("int4", 7)])
@given(st.integers(0, 2**32), st.integers(-30, 30))
def test_the_bound_is_half_a_step(name: str, levels: int, seed: int, exponent: int) -> None:
    """And no more, or a codec that loses everything would pass."""
    x = numbers(BLOCK, seed, exponent, 0)
    assert CODECS[name].error_bound(x).max() <= max(0.51 * x.abs().max().item() / levels, 2.0**-126)


def test_int8_golden() -> None:
    x = torch.zeros(33)
    x[:5] = torch.tensor([127.0, -127.0, 1.4, -1.6, 0.5])  # a scale of 1; a half goes to the even number
    x[32] = -254.0  # a block of its own: a scale of 2
    message = CODECS["int8"].encode(x)
    codes = [127, 129, 1, 254, 0] + [0] * 27 + [129]
    assert message.tolist() == [0x80, 0x3F, 0x00, 0x40, *codes]  # little-endian bfloat16 scales, then two's complement
    assert CODECS["int8"].decode(message, [33]).tolist() == [127, -127, 1, -2, 0] + [0] * 27 + [-254]


def test_int4_golden() -> None:
    x = torch.tensor([7.0, -7.0, 1.4, -2.6, 3.0])
    message = CODECS["int4"].encode(x)
    # integers 7 -7 1 | -3 3: byte i holds number i in its lower half and number i + 3 in its upper half
    assert message.tolist() == [0x80, 0x3F, 0xD7, 0x39, 0x01]
    assert CODECS["int4"].decode(message, [5]).tolist() == [7, -7, 1, -3, 3]


@given(st.integers(0, 2**32), st.integers(1, 3 * SPARSE_BLOCK))
def test_topk_keeps_the_largest_eighth_exactly(seed: int, size: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    back = CODECS["topk"].decode(CODECS["topk"].encode(x), [size])
    for start in range(0, size, SPARSE_BLOCK):
        block, kept = x[start : start + SPARSE_BLOCK], back[start : start + SPARSE_BLOCK]
        largest = block.abs().sort(descending=True).indices[: math.ceil(len(block) / 8)]
        expected = torch.zeros_like(block)
        expected[largest] = block[largest]
        assert torch.equal(kept, expected)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 299])
def test_what_is_no_finite_number_is_refused(name: str, wrong: float, place: int) -> None:
    x = torch.ones(300)
    x[place] = wrong
    with pytest.raises(ValueError, match=f"{name} holds finite numbers up to"):
        CODECS[name].encode(x)


@pytest.mark.parametrize(
    ("name", "largest"), [("fp16", 65504.0), ("int8", LARGEST), ("int4", LARGEST), ("topk", 3.4028234663852886e38)]
)
def test_the_largest_number(name: str, largest: float) -> None:
    codec, x = CODECS[name], torch.full([40], -largest)
    assert codec.decode(codec.encode(x), [40]).isfinite().all()
    if name != "topk":
        with pytest.raises(ValueError, match="or larger ones"):
            codec.encode(x * 1.01)


def test_fp32_passes_any_bits() -> None:
    x = torch.tensor([math.nan, math.inf, -0.0, 1e-45])
    assert torch.equal(CODECS["fp32"].encode(x), x.view(torch.uint8))
    assert torch.equal(CODECS["fp32"].decode(CODECS["fp32"].encode(x), [4]).view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("name", CODECS)
def test_messages_may_lie_at_any_address_but_must_have_their_length(name: str) -> None:
    codec, x = CODECS[name], torch.randn(5, 13)
    message = codec.encode(x)
    if codec.lossy:
        shifted = torch.cat([torch.zeros(1, dtype=torch.uint8), message])[1:]
        assert torch.equal(codec.decode(shifted, x.shape), codec.decode(message, x.shape))
    for wrong in (message[:-1], torch.cat([message, message[:1]]), message.view(torch.int8)):
        with pytest.raises(ValueError, match=f"expected uint8 .* for {name} of"):
            codec.decode(wrong, x.shape)


def test_a_position_outside_its_block_is_refused() -> None:
    message = CODECS["topk"].encode(torch.randn(20))
    message[-1] = 20
    with pytest.raises(ValueError, match="position 20 in a block of 20"):
        CODECS["topk"].decode(message, [20])
