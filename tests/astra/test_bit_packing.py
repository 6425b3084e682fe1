"""Bit packing against a definition in strings of digits, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from testbed.astra.bit_packing import index_bits, pack, packed_bytes, unpack

WIDTHS = st.integers(1, 16)


@st.composite
def messages(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """(codes [P, G], bits)."""
    bits, rows, groups = draw(WIDTHS), draw(st.integers(0, 9)), draw(st.integers(1, 9))
    codes = draw(st.lists(st.integers(0, 2**bits - 1), min_size=rows * groups, max_size=rows * groups))
    return torch.tensor(codes, dtype=torch.int64).reshape(rows, groups), bits


@given(messages())
def test_packing_is_the_concatenation_of_binary_digits(message: tuple[torch.Tensor, int]) -> None:
    codes, bits = message
    digits = "".join(f"{code:0{bits}b}" for code in codes.flatten().tolist())
    size = packed_bytes(codes.numel(), bits)
    digits = digits.ljust(8 * size, "0")
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.is_contiguous()
    assert packed.tolist() == [int(digits[start : start + 8], 2) for start in range(0, len(digits), 8)]


@given(messages())
def test_unpacking_is_the_inverse(message: tuple[torch.Tensor, int]) -> None:
    codes, bits = message
    unpacked = unpack(pack(codes, bits), len(codes), codes.shape[1], bits)
    assert unpacked.dtype == torch.int64
    assert torch.equal(unpacked, codes)


@given(WIDTHS, st.integers(0, 10**6))
def test_messages_waste_less_than_a_byte(bits: int, count: int) -> None:
    assert 0 <= 8 * packed_bytes(count, bits) - count * bits < 8


def test_a_message_of_ten_bit_codes() -> None:
    packed = pack(torch.tensor([[1023, 0, 1, 512]]), 10)
    assert packed.tolist() == [0b11111111, 0b11000000, 0b00000000, 0b00000110, 0b00000000]


def test_strided_and_smaller_integers_are_packed_too() -> None:
    codes = torch.arange(12).reshape(3, 4)
    assert torch.equal(pack(codes.T.contiguous().T, 4), pack(codes, 4))
    assert torch.equal(pack(codes.to(torch.int16), 4), pack(codes, 4))


@pytest.mark.parametrize("code", [-1, 1024, 2**40])
def test_codes_out_of_range_are_refused(code: int) -> None:
    with pytest.raises(ValueError, match=f"code {code} does not fit 10 bits; allowed: 0 to 1023"):
        pack(torch.tensor([[3, code]]), 10)


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_widths_out_of_range_are_refused(bits: int) -> None:
    for operation in (lambda: pack(torch.zeros(1, 1), bits), lambda: unpack(torch.zeros(1), 1, 1, bits)):
        with pytest.raises(ValueError, match=f"bits is {bits}; allowed: 1 to 16"):
            operation()


def test_messages_of_a_wrong_length_or_type_are_refused() -> None:
    packed = pack(torch.zeros(3, 2, dtype=torch.int64), 10)
    for wrong in (packed[:-1], torch.cat([packed, packed[:1]]), packed.to(torch.int32), packed[None]):
        with pytest.raises(ValueError, match=r"expected uint8 \[8\] for 3 x 2 codes of 10 bits"):
            unpack(wrong, 3, 2, 10)


@given(WIDTHS, st.integers(1, 20), st.data())
def test_padding_that_is_not_zero_is_refused(bits: int, count: int, data: st.DataObject) -> None:
    padding = -count * bits % 8
    packed = pack(torch.zeros(count, 1, dtype=torch.int64), bits)
    if padding:
        packed[-1] |= 1 << data.draw(st.integers(0, padding - 1))
        with pytest.raises(ValueError, match=f"the {padding} padding bits"):
            unpack(packed, count, 1, bits)


def test_bits_of_codebook_sizes() -> None:
    assert [index_bits(size) for size in (2, 4, 1024, 65536)] == [1, 2, 10, 16]
