"""What the machine and the links did during one forward pass, beside the pass itself: counters before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.cluster.processor_time import ProcessorReading, foreign_s
from testbed.comm.pacing import SEGMENT_HEADERS, SEGMENT_PAYLOAD
from testbed.comm.tcp_info import TcpCounters
from testbed.network.link_watch import LinkWatch
from testbed.network.qdisc import LinkReading
from topologies.link_graph import Hop, LinkGraph

# Of each rank to each peer, so many acknowledgements may be counted by TCP before a pass or after it and by a link
# during it, or the other way round.
STRAY_ACKNOWLEDGEMENTS = 2
PACKET_BYTES = SEGMENT_PAYLOAD + SEGMENT_HEADERS
SACK_BYTES = 36  # at most, in the acknowledgement of a packet that came out of order or twice


@dataclass(frozen=True)
class Counters:
    """All counters at a time between two passes. at_s: that time, monotonic.

    processors: None where the system does not report them. throttled_s: see ``testbed.limits``. links: None without
    counters. tcp: of each rank, by peer.
    """

    at_s: float
    processors: ProcessorReading | None
    throttled_s: float
    links: LinkReading | None
    tcp: Sequence[dict[int, TcpCounters | None]]


@dataclass(frozen=True)
class Conditions:
    """One pass. Times are of this machine's clock. None: the system or the backend does not count it.

    seconds: from the counters before it to those after it. cores: that this run may use. foreign_cpu_s: processor
    seconds of other programs. throttled_s: for which a CPU quota stopped this run. carried_bytes: by each hop, with
    packet headers. foreign_bytes: the hop farthest outside its bounds (``wire_bounds``), and by how much. packets: that
    ranks sent, and of these retransmits. dropped: packets that found a queue full. out_of_order: packets that came
    before earlier ones. changed: hops that are no longer shaped as they were. rate_error_pct, burst: see LinkWatch.
    """

    seconds: float
    cores: int = 1
    foreign_cpu_s: float | None = None
    throttled_s: float = 0.0
    carried_bytes: dict[Hop, int] | None = None
    foreign_bytes: tuple[Hop, int] | None = None
    packets: int | None = None
    retransmits: int | None = None
    dropped: int | None = None
    out_of_order: int | None = None
    changed: tuple[Hop, ...] = ()
    rate_error_pct: tuple[Hop, float] | None = None
    burst: tuple[Hop, float] | None = None


def conditions(
    graph: LinkGraph, shaped: LinkReading | None, before: Counters, after: Counters, watch: LinkWatch
) -> Conditions:
    """What happened between two readings. shaped: the links after they were shaped."""
    found: dict[str, Any] = {"rate_error_pct": watch.worst_rate(), "burst": watch.largest_burst()}
    if before.processors is not None and after.processors is not None:
        found["cores"] = after.processors.cores
        found["foreign_cpu_s"] = foreign_s(before.processors, after.processors)
    sent = sent_between(before.tcp, after.tcp)
    if sent is not None:
        for name in ("packets", "retransmits", "out_of_order"):
            found[name] = sum(getattr(counters, name) for counters in sent.values())
    if shaped is not None and before.links is not None and after.links is not None:
        old, new = before.links.counters, after.links.counters
        carried = {hop: new[hop].bytes - old[hop].bytes for hop in new}
        dropped = sum(new[hop].drops - old[hop].drops for hop in new)
        found |= {"carried_bytes": carried, "dropped": dropped}
        found["changed"] = tuple(hop for hop in new if new[hop].options != shaped.counters[hop].options)
        if sent is not None:
            foreign = {hop: outside(carried[hop], *bounds) for hop, bounds in wire_bounds(graph, sent, dropped).items()}
            found["foreign_bytes"] = max(foreign.items(), key=lambda each: abs(each[1]), default=None)
    return Conditions(after.at_s - before.at_s, throttled_s=after.throttled_s - before.throttled_s, **found)


def sent_between(
    before: Sequence[Mapping[int, TcpCounters | None]], after: Sequence[Mapping[int, TcpCounters | None]]
) -> dict[tuple[int, int], TcpCounters] | None:
    """(rank, peer) -> what rank sent to peer, and received out of order from it; None where TCP does not count."""
    found = {}
    for rank, (old, new) in enumerate(zip(before, after, strict=True)):
        for peer, now in new.items():
            then = old[peer]
            if now is None or then is None:
                return None
            found[rank, peer] = TcpCounters(*(b - a for a, b in zip(then, now, strict=True)))
    return found


def wire_bounds(
    graph: LinkGraph, sent: Mapping[tuple[int, int], TcpCounters], dropped: int = 0
) -> dict[Hop, tuple[int, int]]:
    """For each hop, the fewest and the most bytes that it must have carried for what ranks sent.

    TCP knows how many packets it sent, so the bounds differ by acknowledgements that cross a link before or after they
    are counted, by options of acknowledgements, and by dropped packets.
    """
    total, stray = dict.fromkeys(graph.share, 0), dict.fromkeys(graph.share, 0)
    for ends, counters in sent.items():
        for hop in graph.routes[ends]:
            total[hop] += counters.wire_bytes
            stray[hop] += STRAY_ACKNOWLEDGEMENTS * SEGMENT_HEADERS
    options = SACK_BYTES * sum(counters.out_of_order + counters.retransmits for counters in sent.values())
    return {hop: (total[hop] - stray[hop] - dropped * PACKET_BYTES, total[hop] + stray[hop] + options) for hop in total}


def outside(value: int, least: int, most: int) -> int:
    """How far a value is above ``most``, or, as a negative number, below ``least``; 0 in between."""
    return max(0, value - most) + min(0, value - least)
