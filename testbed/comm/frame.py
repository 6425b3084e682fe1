"""The 16-byte header in front of every message between two ranks, and the 20-byte greeting of a connection.

Nothing from a peer is trusted. Magic, operation, source, sequence number and length must all equal what the receiver
expects at this point of the program, so a length can never make it allocate memory.
"""

from __future__ import annotations

import struct

from testbed.errors import CommError

_HEADER = struct.Struct(">2sBBIQ")  # magic, operation, source rank, sequence number, payload bytes
_GREETING = struct.Struct(">16sI")  # the run's token, source rank
_MAGIC = b"AT"
HEADER_BYTES = _HEADER.size
GREETING_BYTES = _GREETING.size
OPERATIONS = ("all_gather", "all_reduce", "reduce_scatter", "all_to_all", "send", "barrier", "ready")


def pack_header(operation: str, source: int, sequence: int, payload_bytes: int) -> bytes:
    """The header of one message."""
    return _HEADER.pack(_MAGIC, OPERATIONS.index(operation), source, sequence & 0xFFFFFFFF, payload_bytes)


def check_header(header: bytes, operation: str, source: int, sequence: int, payload_bytes: int) -> None:
    """Raise CommError that names the peer unless the header is exactly the expected one."""
    if header == pack_header(operation, source, sequence, payload_bytes):
        return
    if len(header) != HEADER_BYTES or header[:2] != _MAGIC or header[2] >= len(OPERATIONS):
        raise CommError(f"rank {source} sent a corrupt frame in {operation}: {header[:HEADER_BYTES].hex()}", [source])
    _, code, rank, number, length = _HEADER.unpack(header)
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
