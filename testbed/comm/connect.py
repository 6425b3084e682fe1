"""How ranks find each other: each listens on its data address, and opens a connection to every other rank.

A connection carries messages one way only, so two ranks have two. What flows back on it is acknowledgements, and as
these are all that its receiving end sends, that end can be given priority on the link. Behind a queue of data they
would be late, and two directions of one link would take turns instead of both being full (Zhang, Shenker, Clark,
SIGCOMM 1991). An ordinary Linux host has fq_codel for this.
"""

from __future__ import annotations

import socket
import time

from testbed.comm.frame import GREETING_BYTES, pack_greeting, read_greeting
from testbed.comm.tcp import TcpGroup
from testbed.errors import CommError

PRIORITY_INTERACTIVE = 6  # TC_PRIO_INTERACTIVE: the first band of pfifo_fast


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
    to: dict[int, socket.socket] = {}
    source: dict[int, socket.socket] = {}
    try:
        for peer in range(world):
            if peer != rank:
                to[peer] = _open(addresses[peer], listener.getsockname()[0], peer, deadline)
                to[peer].sendall(pack_greeting(token, rank))
        while len(source) < world - 1:
            try:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                connection, _ = listener.accept()
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                greeting = connection.recv(GREETING_BYTES, socket.MSG_WAITALL)
            except TimeoutError:
                missing = sorted(set(range(world)) - set(source) - {rank})
                raise CommError(f"rank {rank} waited {timeout_s:g} s for ranks {missing} to join", missing) from None
            if hasattr(socket, "SO_PRIORITY"):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, PRIORITY_INTERACTIVE)
            source[read_greeting(greeting, token, world)] = connection
    except BaseException:
        for connection in (*to.values(), *source.values()):
            connection.close()
        raise
    finally:
        listener.close()
    return TcpGroup(rank, world, to, source, timeout_s)


def _open(address: tuple[str, int], source: str, peer: int, deadline: float) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_CONGESTION"):
        # The machine's default may be BBR, which leaves a tenth of a shaped two-way link unused and differs from
        # machine to machine. CUBIC is Linux's own default (RFC 9438).
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    connection.bind((source, 0))
    connection.settimeout(max(0.01, deadline - time.monotonic()))
    try:
        connection.connect(address)
    except OSError as error:
        connection.close()
        raise CommError(f"rank {peer} at {address[0]}:{address[1]} does not answer: {error}", [peer]) from error
    return connection
