"""How ranks find each other: each listens on its data address, and opens a connection to every other rank.

A connection carries messages one way only, so two ranks have two. What flows back on it is acknowledgements, and as
these are all that its receiving end sends, that end can be given priority on the link. Behind a queue of data they
would be late, and two directions of one link would take turns instead of both being full (Zhang, Shenker, Clark,
SIGCOMM 1991). An ordinary Linux host has fq_codel for this.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from testbed.comm.frame import GREETING_BYTES, pack_greeting, read_greeting
from testbed.comm.tcp import TcpGroup
from testbed.errors import CommError

LOW_DELAY = 0x10  # IPTOS_LOWDELAY: the first band of pfifo_fast, also in hosts that forward
STRANGERS_WAITING = 64  # connections beyond the ranks' own whose greeting is awaited; then the oldest is closed
STRANGERS_NAMED = 3


def listen(address: str) -> socket.socket:
    """A listening socket on a free port of one address of the data network; ValueError if that means all addresses."""
    if ip_address(address).is_unspecified:
        raise ValueError(f"{address} means all addresses; data ports listen on the one of their own network only")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen()
    return listener


def connect(
    rank: int, addresses: list[tuple[str, int]], listener: socket.socket, token: bytes, timeout_s: float = 30.0
) -> TcpGroup:
    """Connect this rank with all others and return the group; closes the listener.

    addresses: (data address, port) of each rank's listener. token: 16 random bytes that mark this run's connections.
    Raises CommError that names the ranks that never came, and where strangers came from.
    """
    world, deadline = len(addresses), time.monotonic() + timeout_s
    to: dict[int, socket.socket] = {}
    source: dict[int, socket.socket] = {}
    try:
        for peer in range(world):
            if peer != rank:
                to[peer] = _open(addresses[peer], listener.getsockname()[0], peer, deadline, pack_greeting(token, rank))
        strangers = _accept(listener, source, set(to), token, deadline)
        if missing := sorted(set(to) - set(source)):
            others = f"; turned away {', '.join(strangers)}: not of this run" if strangers else ""
            raise CommError(f"rank {rank} waited {timeout_s:g} s for ranks {missing} to join{others}", missing)
    except BaseException:
        for connection in (*to.values(), *source.values()):
            connection.close()
        raise
    finally:
        listener.close()
    return TcpGroup(rank, world, to, source, timeout_s)


@dataclass
class _Newcomer:
    """A connection whose greeting has not come in full."""

    connection: socket.socket
    address: str
    greeting: bytes = b""

    def read(self) -> bool:
        """Read on; True once there is nothing to wait for: the greeting is whole or its sender gone."""
        try:
            part = self.connection.recv(GREETING_BYTES - len(self.greeting))
        except OSError:
            part = b""
        self.greeting += part
        return not part or len(self.greeting) == GREETING_BYTES


def _accept(
    listener: socket.socket, source: dict[int, socket.socket], peers: set[int], token: bytes, deadline: float
) -> Iterable[str]:
    """Put the connection of each of ``peers`` into ``source``, as far as they come before the deadline.

    A connection that is not of this run, or claims a rank that has joined, is closed and the wait goes on. All
    greetings are awaited at once, so one that says nothing holds nobody up. Returns the last strangers' addresses.
    """
    newcomers: dict[socket.socket, _Newcomer] = {}  # who waits longest comes first
    strangers: deque[str] = deque(maxlen=STRANGERS_NAMED)

    def reject(newcomer: _Newcomer) -> None:
        strangers.append(newcomer.address)
        newcomer.connection.close()

    listener.setblocking(False)
    try:
        while len(source) < len(peers) and (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([listener, *newcomers], [], [], left)
            for connection in readable:
                if connection is listener or not newcomers[connection].read():
                    continue
                newcomer = newcomers.pop(connection)
                peer = read_greeting(newcomer.greeting, token)
                if peer is None or peer not in peers or peer in source:
                    reject(newcomer)
                else:
                    source[peer] = connection
            if listener in readable:
                with contextlib.suppress(OSError):  # gone again
                    connection, (host, port) = listener.accept()
                    connection.setblocking(False)
                    connection.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, LOW_DELAY)
                    newcomers[connection] = _Newcomer(connection, f"{host}:{port}")
            if len(newcomers) > len(peers) + STRANGERS_WAITING:
                reject(newcomers.pop(next(iter(newcomers))))
    finally:
        for newcomer in newcomers.values():
            reject(newcomer)
    return strangers


def _open(address: tuple[str, int], source: str, peer: int, deadline: float, greeting: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _use_cubic(connection)
    connection.bind((source, 0))
    connection.settimeout(max(0.01, deadline - time.monotonic()))
    try:
        connection.connect(address)
        connection.sendall(greeting)
    except OSError as error:
        connection.close()
        raise CommError(f"rank {peer} at {address[0]}:{address[1]} does not answer: {error}", [peer]) from error
    return connection


def _use_cubic(connection: socket.socket) -> None:
    """Choose CUBIC where the system lets this user choose; elsewhere the connection keeps the system's default.

    The default may be BBR, which leaves a tenth of a shaped two-way link unused and differs from machine to machine.
    CUBIC is Linux's own default (RFC 9438). A user without root may take only what
    net.ipv4.tcp_allowed_congestion_control lists, and a kernel may lack CUBIC. ``TcpGroup.congestion_control`` reads
    back what is in force.
    """
    if hasattr(socket, "TCP_CONGESTION"):
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
