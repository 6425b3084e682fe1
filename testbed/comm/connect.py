"""How ranks connect: each listens on its data address and opens a connection to every other rank.

A connection carries messages in one direction only, so two ranks have two connections. The receiving end sends nothing
but acknowledgements, so that end gets priority on the link. Without priority, acknowledgements would wait behind a
queue of data, and the two directions of a link would alternate instead of both being full (Zhang, Shenker, Clark,
SIGCOMM 1991). On an ordinary Linux host, fq_codel solves this problem.
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
STRANGERS_WAITING = 64  # foreign connections whose greeting is awaited; beyond that, the oldest one is closed
STRANGERS_NAMED = 3


def listen(address: str) -> socket.socket:
    """A listening socket on a free port of one data address. ValueError for an address that means all addresses."""
    if ip_address(address).is_unspecified:
        raise ValueError(f"{address} means all addresses; a data port listens on its own network only")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen()
    return listener


def connect(
    rank: int, addresses: list[tuple[str, int]], listener: socket.socket, token: bytes, timeout_s: float = 30.0
) -> TcpGroup:
    """Connect this rank with all others, close the listener, and return the group.

    addresses: (data address, port) of each rank's listener. token: 16 random bytes that mark this run's connections.
    timeout_s: seconds for all connections together. CommError names the ranks that did not join, and the addresses of
    foreign connections.
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
            others = f"; refused {', '.join(strangers)}, not of this run" if strangers else ""
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
    """A connection whose greeting is incomplete."""

    connection: socket.socket
    address: str
    greeting: bytes = b""

    def read(self) -> bool:
        """Read more bytes. True once the greeting is complete or its sender is gone."""
        try:
            part = self.connection.recv(GREETING_BYTES - len(self.greeting))
        except OSError:
            part = b""
        self.greeting += part
        return not part or len(self.greeting) == GREETING_BYTES


def _accept(
    listener: socket.socket, source: dict[int, socket.socket], peers: set[int], token: bytes, deadline: float
) -> Iterable[str]:
    """Put the connection of each of ``peers`` into ``source`` if it arrives before the deadline.

    A connection that does not belong to this run, or claims a rank that has joined already, is closed. All greetings
    are awaited in parallel, so a silent connection delays no other. Returns the addresses of the last foreign
    connections.
    """
    newcomers: dict[socket.socket, _Newcomer] = {}  # the oldest one first
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
                with contextlib.suppress(OSError):  # its sender is gone already
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
    """Choose CUBIC where the system permits it; elsewhere the connection keeps the system's default.

    The default differs between machines. It may be BBR, which leaves a tenth of a shaped two-way link unused. CUBIC is
    the default of Linux itself (RFC 9438). A user without root may choose only what
    net.ipv4.tcp_allowed_congestion_control lists, and a kernel may lack CUBIC. ``TcpGroup.congestion_control`` returns
    what is in force.
    """
    if hasattr(socket, "TCP_CONGESTION"):
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
