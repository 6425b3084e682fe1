"""What the kernel says of TCP connections."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from testbed.comm.pacing import SEGMENT_HEADERS

CONGESTION_BYTES = 16  # TCP_CA_NAME_MAX: the longest name of a congestion control in Linux
# Of Linux's struct tcp_info, since Linux 5.4: tcpi_total_retrans, tcpi_segs_out, tcpi_bytes_sent, tcpi_rcv_ooopack.
COUNTERS = struct.Struct("=100xI32xI60xQ16xI")


class TcpCounters(NamedTuple):
    """What has gone from this rank to a peer so far, and what has come out of order from it.

    wire_bytes: with packet headers, acknowledgements and what was sent again. packets: sent, and of these retransmits.
    out_of_order: packets received before earlier ones.
    """

    wire_bytes: int
    packets: int
    retransmits: int
    out_of_order: int


def counters(connections: Iterable[socket.socket]) -> TcpCounters | None:
    """Sums over the connections with one peer; None where the system does not count."""
    if not hasattr(socket, "TCP_INFO"):
        return None
    wire_bytes = packets = retransmitted = out_of_order = 0
    for each in connections:
        info = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, COUNTERS.size)
        if len(info) < COUNTERS.size:
            return None
        again, sent, sent_bytes, disordered = COUNTERS.unpack(info)
        wire_bytes += sent_bytes + SEGMENT_HEADERS * sent
        packets, retransmitted, out_of_order = packets + sent, retransmitted + again, out_of_order + disordered
    return TcpCounters(wire_bytes, packets, retransmitted, out_of_order)


def congestion_control(connections: Iterable[socket.socket]) -> list[str]:
    """The congestion controls of these connections, each once. Empty where the system has no name."""
    if not hasattr(socket, "TCP_CONGESTION"):
        return []
    names = (each.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_BYTES) for each in connections)
    return sorted({name.rstrip(b"\0").decode() for name in names})
