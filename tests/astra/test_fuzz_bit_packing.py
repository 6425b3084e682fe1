"""Messages of codes that a peer might send: any bytes are codes that can be decoded, or a ValueError."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from testbed.astra.bit_packing import MOST_MESSAGE_BITS, index_bits, pack, packed_bytes, unpack
from testbed.astra.quantizer import Quantizer

SIZES = st.integers(-2, 9)


def message(raw: bytes) -> torch.Tensor:
    return torch.tensor(list(raw), dtype=torch.uint8)


@st.composite
def fitting(draw: st.DrawFn) -> tuple[bytes, int, int, int]:
    """Any bytes of the correct length."""
    bits, rows, groups = draw(st.integers(1, 16)), draw(st.integers(0, 9)), draw(st.integers(0, 9))
    size = (rows * groups * bits + 7) // 8
    return draw(st.binary(min_size=size, max_size=size)), rows, groups, bits


@given(fitting() | st.tuples(st.binary(max_size=40), SIZES, SIZES, st.integers(-1, 18)))
@example((b"", -1, 1, 1))  # padding of an empty message
@example((b"a", -1, -1, 8))
@example((b"ab", -2, -1, 8))
@example((b"", 0, -1, 8))
def test_any_bytes_are_codes_or_a_value_error(sent: tuple[bytes, int, int, int]) -> None:
    raw, rows, groups, bits = sent
    try:
        codes = unpack(message(raw), rows, groups, bits)
    except ValueError as error:
        padding = -rows * groups * bits % 8
        fits = rows >= 0 and groups >= 0 and 1 <= bits <= 16 and len(raw) == packed_bytes(rows * groups, bits)
        assert not fits or (padding and raw[-1] % 2**padding), f"refused without a reason: {error}"
    else:
        assert codes.shape == (rows, groups) and codes.dtype == torch.int64
        assert pack(codes, bits).tolist() == list(raw)


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 5), st.data())
def test_every_code_on_the_wire_is_a_codeword(log_size: int, groups: int, rows: int, data: st.DataObject) -> None:
    """Codebook sizes are powers of two, so there is no bit pattern beyond the last codeword."""
    size = 2**log_size
    codebooks = torch.arange(groups * size, dtype=torch.float32).reshape(1, groups, size, 1)
    bits, count = index_bits(size), rows * groups
    raw = bytearray(data.draw(st.binary(min_size=packed_bytes(count, bits), max_size=packed_bytes(count, bits))))
    raw[-1] &= 0xFF << (-count * bits % 8) & 0xFF
    codes = unpack(message(bytes(raw)), rows, groups, bits)
    decoded = Quantizer(codebooks).decode(0, codes)
    assert torch.equal(decoded, codes + torch.arange(groups) * size)  # each from its own group's codebook


@pytest.mark.parametrize("bits", [1, 10, 16])
def test_a_message_beyond_the_range_of_its_bit_counter_is_refused(bits: int) -> None:
    most = MOST_MESSAGE_BITS // bits
    assert packed_bytes(most, bits) <= 2**28
    with pytest.raises(ValueError, match=f"{most + 1} codes of {bits} bits; allowed: 0 to {most} codes"):
        unpack(torch.zeros(1, dtype=torch.uint8), most + 1, 1, bits)
