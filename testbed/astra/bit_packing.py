"""Codeword indices as bits on the wire: ``bits`` bits per index, most significant bit first, without gaps.

Zero bits pad the end of a message to whole bytes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LARGEST_BITS = 16
MOST_MESSAGE_BITS = 2**31 - 1  # 256 MB, as unpacking counts bits in int32


def index_bits(codebook_size: int) -> int:
    """Bits of an index into ``codebook_size`` codewords: log2, rounded up."""
    return (codebook_size - 1).bit_length()


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of a message of ``count`` indices. Raises ValueError unless ``bits`` is 1 to 16 and ``count`` fits."""
    if not 1 <= bits <= LARGEST_BITS:
        raise ValueError(f"bits is {bits}; allowed: 1 to {LARGEST_BITS}")
    if not 0 <= count <= MOST_MESSAGE_BITS // bits:
        raise ValueError(f"{count} codes of {bits} bits; allowed: 0 to {MOST_MESSAGE_BITS // bits} codes")
    return (count * bits + 7) // 8


def pack(codes_PI: Tensor, bits: int) -> Tensor:
    """Indices [P, I] of an integer type -> uint8 [packed_bytes(P * I, bits)], token after token.

    Raises ValueError if an index is negative or needs more than ``bits`` bits.
    """
    codes = codes_PI.reshape(-1).to(torch.int64).numpy()
    size = packed_bytes(codes.size, bits)
    if codes.size and (codes.min() < 0 or codes.max() >> bits):
        wrong = codes.min() if codes.min() < 0 else codes.max()
        raise ValueError(f"code {wrong} does not fit {bits} bits; allowed: 0 to {2**bits - 1}")
    bits_of_each = np.unpackbits(codes.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
    packed = np.packbits(bits_of_each[:, LARGEST_BITS - bits :].reshape(-1))
    assert packed.size == size
    return torch.from_numpy(packed)


def unpack(packed: Tensor, tokens: int, indices: int, bits: int) -> Tensor:
    """uint8 message of tokens * indices indices -> int64 [tokens, indices]; the inverse of ``pack``.

    Raises ValueError if the message has another length or type, or its padding is not zero.
    """
    count = tokens * indices
    size = packed_bytes(count, bits)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        found = f"{packed.dtype} {list(packed.shape)}"
        raise ValueError(f"message is {found}; expected uint8 [{size}] for {tokens} x {indices} codes of {bits} bits")
    message = packed.numpy()
    padding = 8 * size - count * bits
    if padding and message[-1] & ((1 << padding) - 1):
        raise ValueError(f"the {padding} padding bits at the end of the message are not zero: it is damaged")
    # an index spans at most 3 bytes: read 3 bytes from its first one, then shift out the bits after the index
    first_bit = np.arange(count, dtype=np.int32) * bits
    first_byte, offset = first_bit >> 3, first_bit & 7
    wide = np.zeros(size + 2, np.int32)
    wide[:size] = message
    wide = wide[:size] << 16 | wide[1 : size + 1] << 8 | wide[2:]
    codes = wide[first_byte] >> (24 - bits - offset) & ((1 << bits) - 1)
    return torch.from_numpy(codes.astype(np.int64).reshape(tokens, indices))
