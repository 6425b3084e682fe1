"""How ranks find each other: each listens on its data address, and connects to the ranks below it."""

from __future__ import annotations

import socket
import time

from testbed.comm.frame import GREETING_BYTES, pack_greeting, read_greeting
from testbed.comm.tcp import TcpGroup
from testbed.errors import CommError


def listen(address: str) -> socket.socket:
    """A listening socket on a free port of one address of the data network, never on all addresses."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen()
    return listener


def connect(
    rank: int, addresses: list[tuple[str, int]], listener: socket.socket, token: bytes, timeout_s: float = 30.0
) -> TcpGroup:
    """Connect this rank with all others and return the group; closes the listener.

    addresses: (data address, port) of each rank's listener. token: 16 random bytes that mark this run's connections.
    Raises CommError that names the ranks that never came.
    """
    world, deadline = len(addresses), time.monotonic() + timeout_s
    peers: dict[int, socket.socket] = {}
    try:
        for peer in range(rank):
            peers[peer] = _open(addresses[peer], listener.getsockname()[0], peer, deadline)
            peers[peer].sendall(pack_greeting(token, rank))
        while len(peers) < world - 1:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                greeting = connection.recv(GREETING_BYTES, socket.MSG_WAITALL)
            except TimeoutError:
                missing = sorted(set(range(rank + 1, world)) - set(peers))
                raise CommError(f"rank {rank} waited {timeout_s:g} s for ranks {missing} to join", missing) from None
            _tune(connection)
            peers[read_greeting(greeting, token, world)] = connection
    except BaseException:
        for connection in peers.values():
            connection.close()
        raise
    finally:
        listener.close()
    return TcpGroup(rank, world, peers, timeout_s)


def _open(address: tuple[str, int], source: str, peer: int, deadline: float) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    _tune(connection)
    connection.bind((source, 0))
    connection.settimeout(max(0.01, deadline - time.monotonic()))
    try:
        connection.connect(address)
    except OSError as error:
        connection.close()
        raise CommError(f"rank {peer} at {address[0]}:{address[1]} does not answer: {error}", [peer]) from error
    return connection


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_CONGESTION"):
        # The machine's default may be BBR, which leaves a tenth of a shaped two-way link unused and differs from
        # machine to machine. CUBIC is Linux's own default (RFC 9438).
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
