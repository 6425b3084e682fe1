"""Counters of the queues of data links, read from the kernel over netlink sockets that stay open.

``tc`` would be a process in each namespace for each reading, and take longer than a message. One socket for each
namespace asks for the root qdisc of its links (RTM_GETQDISC, rtnetlink(7)). The kernel answers while it is asked, so
all numbers of a reading are of the time between ``before_s`` and ``after_s``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from testbed.errors import EnvironmentFault
from topologies.link_graph import Hop

CLONE_NEWNET = 0x40000000
MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
QUEUE = struct.Struct("=BxxxiIII")  # tcmsg: family, interface, handle, parent, info
ATTRIBUTE = struct.Struct("=HH")  # length, type
ERROR, GET_QDISC = 2, 38
REQUEST, ECHO = 1, 8  # without ECHO, some kernels answer to listeners only
ROOT = 0xFFFFFFFF
OPTIONS, STATISTICS = 2, 7  # TCA_OPTIONS, TCA_STATS2
SENT, QUEUED = 1, 3  # TCA_STATS_BASIC: bytes and packets; TCA_STATS_QUEUE: packets, bytes, drops
ATTRIBUTE_TYPE = 0x3FFF  # without the flags for nested attributes and byte order
ANSWER_BYTES, TIMEOUT_S = 1 << 14, 2.0


class QdiscCounters(NamedTuple):
    """One link's queue. bytes, packets: sent so far. backlog_bytes: waiting. drops: packets that found it full.

    options: its settings, as the kernel describes them.
    """

    bytes: int = 0
    packets: int = 0
    backlog_bytes: int = 0
    drops: int = 0
    options: bytes = b""


@dataclass(frozen=True)
class LinkReading:
    """The counters of all hops at an instant between two monotonic times."""

    before_s: float
    after_s: float
    counters: Mapping[Hop, QdiscCounters]


class QdiscReader:
    """Reads the root qdiscs of data links.

    namespaces: for each, a process in it (None: the own one) and the interfaces by hop. EnvironmentFault if a namespace
    cannot be entered or the kernel does not answer.
    """

    def __init__(self, namespaces: Sequence[tuple[int | None, Mapping[Hop, str]]]):
        self._asked: list[tuple[socket.socket, bytes, int]] = []  # socket, requests, number of requests
        self._hops: list[Hop] = []  # by sequence number
        for pid, interfaces in namespaces:
            if not interfaces:
                continue
            with contextlib.nullcontext() if pid is None else network_of(pid):
                asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
                numbers = [socket.if_nametoindex(name) for name in interfaces.values()]
            asking.bind((0, 0))
            asking.settimeout(TIMEOUT_S)
            requests = [request(len(self._hops) + place, number) for place, number in enumerate(numbers)]
            self._hops += interfaces
            self._asked.append((asking, b"".join(requests), len(requests)))

    def read(self) -> LinkReading:
        """All counters. Hops without a qdisc of their own count as 0."""
        found: dict[Hop, QdiscCounters] = {}
        try:
            before_s = time.monotonic()
            for asking, requests, _ in self._asked:
                asking.send(requests)
            after_s = time.monotonic()
            for asking, _, expected in self._asked:
                while expected:
                    for number, counters in answers(asking.recv(ANSWER_BYTES)):
                        found[self._hops[number]] = counters
                        expected -= 1
        except OSError as error:
            raise EnvironmentFault(f"the kernel does not report the counters of links: {error}") from error
        return LinkReading(before_s, after_s, found)

    def close(self) -> None:
        """Close the sockets."""
        for asking, _, _ in self._asked:
            asking.close()


@contextlib.contextmanager
def network_of(pid: int) -> Iterator[None]:
    """Let this thread make sockets in the network namespace of a process. Python has ``os.setns`` from 3.12 on."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with open(f"/proc/self/task/{threading.get_native_id()}/ns/net") as own, open(f"/proc/{pid}/ns/net") as other:
        if setns(other.fileno(), CLONE_NEWNET):
            raise EnvironmentFault(f"the network namespace of a host: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            setns(own.fileno(), CLONE_NEWNET)


def request(number: int, interface: int) -> bytes:
    """The message that asks for an interface's root qdisc. number: the sequence number, which the answer repeats."""
    header = MESSAGE.pack(MESSAGE.size + QUEUE.size, GET_QDISC, REQUEST | ECHO, number, 0)
    return header + QUEUE.pack(socket.AF_UNSPEC, interface, 0, ROOT, 0)


def answers(received: bytes) -> Iterator[tuple[int, QdiscCounters]]:
    """(sequence number, counters) of each message."""
    start = 0
    while start + MESSAGE.size <= len(received):
        length, kind, _, number, _ = MESSAGE.unpack_from(received, start)
        if kind == ERROR:
            yield number, QdiscCounters()
        else:
            yield number, _counters(received[start + MESSAGE.size + QUEUE.size : start + length])
        start += _aligned(max(length, MESSAGE.size))


def _counters(described: bytes) -> QdiscCounters:
    found = dict(_attributes(described))
    statistics = dict(_attributes(found.get(STATISTICS, b"")))
    sent, packets = struct.unpack_from("=QI", statistics.get(SENT, bytes(12)))
    _, backlog, drops = struct.unpack_from("=III", statistics.get(QUEUED, bytes(12)))
    return QdiscCounters(sent, packets, backlog, drops, found.get(OPTIONS, b""))


def _attributes(described: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start + ATTRIBUTE.size <= len(described):
        length, kind = ATTRIBUTE.unpack_from(described, start)
        yield kind & ATTRIBUTE_TYPE, described[start + ATTRIBUTE.size : start + length]
        start += _aligned(max(length, ATTRIBUTE.size))


def _aligned(length: int) -> int:
    """The next multiple of four."""
    return (length + 3) & ~3
