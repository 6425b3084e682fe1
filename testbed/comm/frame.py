"""The 24-byte header in front of every message between two ranks, and the 20-byte greeting of a connection.

Nothing from a peer is trusted. Magic, operation, source, sequence number and length must all equal what the receiver
expects at this point of the program, so a length can never make it allocate memory. The header also says when the
sender's link began with the message (testbed.comm.pacing.Line). All emulated hosts share the clock of one machine.
"""

from __future__ import annotations

import math
import struct

from testbed.errors import CommError

_EXPECTED = struct.Struct(">2sBBIQ")  # magic, operation, source rank, sequence number, payload bytes
_BEGIN = struct.Struct(">d")  # monotonic seconds
_GREETING = struct.Struct(">16sI")  # the run's token, source rank
_MAGIC = b"AT"
HEADER_BYTES = _EXPECTED.size + _BEGIN.size
GREETING_BYTES = _GREETING.size
OPERATIONS = ("all_gather", "all_reduce", "reduce_scatter", "all_to_all", "send", "barrier", "ready")


def pack_header(operation: str, source: int, sequence: int, payload_bytes: int, begin_s: float = 0.0) -> bytes:
    """The header of one message. begin_s: when the sender's link begins with it."""
    return _expected(operation, source, sequence, payload_bytes) + _BEGIN.pack(begin_s)


def check_header(header: bytes, operation: str, source: int, sequence: int, payload_bytes: int) -> float:
    """When the sender's link began with the message. Raises CommError that names the peer for an unexpected header."""
    expected = _expected(operation, source, sequence, payload_bytes)
    if len(header) == HEADER_BYTES and header.startswith(expected):
        (begin_s,) = _BEGIN.unpack(header[_EXPECTED.size :])
        if not math.isfinite(begin_s):
            raise CommError(f"rank {source} sent {operation} #{sequence} with begin_s={begin_s}", [source])
        return begin_s
    if len(header) != HEADER_BYTES or header[:2] != _MAGIC or header[2] >= len(OPERATIONS):
        raise CommError(f"rank {source} sent a corrupt frame in {operation}: {header[:HEADER_BYTES].hex()}", [source])
    _, code, rank, number, length = _EXPECTED.unpack(header[: _EXPECTED.size])
    raise CommError(
        f"rank {source} sent {OPERATIONS[code]} #{number} of {length} bytes as rank {rank}; "
        f"expected {operation} #{sequence} of {payload_bytes} bytes",
        [source],
    )


def pack_greeting(token: bytes, rank: int) -> bytes:
    """The first bytes on a new connection. token: 16 random bytes of this run."""
    return _GREETING.pack(token, rank)


def read_greeting(greeting: bytes, token: bytes) -> int | None:
    """The rank that the peer claims; None if the connection does not belong to this run."""
    if len(greeting) != GREETING_BYTES:
        return None
    got, rank = _GREETING.unpack(greeting)
    return rank if got == token else None


def _expected(operation: str, source: int, sequence: int, payload_bytes: int) -> bytes:
    """The part of a header that the receiver knows ahead."""
    return _EXPECTED.pack(_MAGIC, OPERATIONS.index(operation), source, sequence & 0xFFFFFFFF, payload_bytes)
