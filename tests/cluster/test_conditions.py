"""What happened during a pass, from the counters before and after it."""

from __future__ import annotations

from typing import Any

from testbed.cluster.conditions import Conditions, Counters, conditions
from testbed.cluster.processor_time import ProcessorReading
from testbed.comm.tcp_info import TcpCounters
from testbed.network.link_watch import LinkWatch
from testbed.network.qdisc import LinkReading, QdiscCounters
from topologies.link_graph import Hop, link_graph, star

QUIET = LinkWatch(lambda: None, {})
GRAPH = star(3)
Sent = dict[tuple[int, int], TcpCounters]


def tcp(sent: Sent, devices: int = 3) -> list[dict[int, TcpCounters | None]]:
    """Counters of each rank that started at other values."""
    nothing = TcpCounters(0, 0, 0, 0)
    return [
        {
            peer: TcpCounters(*(1000 + n for n in sent.get((rank, peer), nothing)))
            for peer in range(devices)
            if peer != rank
        }
        for rank in range(devices)
    ]


def seen(sent: Sent, carried: dict[Hop, int], drops: int = 0, options: bytes = b"as set", **more: Any) -> Conditions:
    """The conditions of a pass in which ranks sent this, and hops carried that."""
    start = {hop: QdiscCounters(500, 5, 0, 2, b"as set") for hop in GRAPH.share}
    end = {hop: QdiscCounters(500 + carried.get(hop, 0), 6, 0, 2, b"as set") for hop in GRAPH.share}
    end["d0", "h1"] = end["d0", "h1"]._replace(drops=2 + drops, options=options)
    shaped = LinkReading(0.0, 0.0, start)
    before = Counters(10.0, None, 1.5, shaped, tcp({}))
    after = Counters(12.0, None, 1.75, LinkReading(2.0, 2.0, end), tcp(sent))
    return conditions(GRAPH, shaped, before, after, QUIET)


def test_bytes_that_ranks_sent_are_not_foreign_on_any_hop_of_their_route() -> None:
    sent = {(0, 1): TcpCounters(10_000, 8, 0, 0), (1, 0): TcpCounters(264, 4, 0, 0)}
    carried = {("h0", "d0"): 10_000, ("d0", "h1"): 10_000, ("h1", "d0"): 264, ("d0", "h0"): 264}
    found = seen(sent, carried)
    assert found.foreign_bytes is not None and found.foreign_bytes[1] == 0
    assert (found.seconds, found.throttled_s, found.packets, found.retransmits) == (2.0, 0.25, 12, 0)
    assert found.carried_bytes == {hop: carried.get(hop, 0) for hop in GRAPH.share}
    assert found.changed == () and found.foreign_cpu_s is None
    # Two acknowledgements may be counted here and not there.
    assert seen(sent, carried | {("h1", "d0"): 264 - 132}).foreign_bytes == found.foreign_bytes
    assert seen(sent, carried | {("h1", "d0"): 264 + 132}).foreign_bytes == found.foreign_bytes


def test_what_nobody_sent_and_what_went_another_way_is_named_with_its_link() -> None:
    sent = {(0, 1): TcpCounters(10_000, 8, 0, 0)}
    carried = {("h0", "d0"): 10_000, ("d0", "h1"): 10_000}
    slack = 2 * 66 * 2  # two peers behind each link
    assert seen(sent, carried | {("h2", "d0"): 1000}).foreign_bytes == (("h2", "d0"), 1000 - slack)
    assert seen(sent, carried | {("d0", "h1"): 0}).foreign_bytes == (("d0", "h1"), slack - 10_000)


def test_a_dropped_packet_is_missing_for_a_known_reason() -> None:
    sent = {(0, 1): TcpCounters(10_000, 8, 1, 0)}
    carried = {("h0", "d0"): 10_000, ("d0", "h1"): 10_000 - 1514}
    assert seen(sent, carried).foreign_bytes == (("d0", "h1"), 264 - 1514)
    found = seen(sent, carried, drops=1)
    assert found.foreign_bytes is not None and found.foreign_bytes[1] == 0 and found.dropped == 1


def test_acknowledgements_of_packets_out_of_order_are_longer() -> None:
    sent = {(0, 1): TcpCounters(10_000, 8, 0, 0), (1, 0): TcpCounters(660, 10, 0, 5)}
    carried = {("h0", "d0"): 10_000, ("d0", "h1"): 10_000, ("h1", "d0"): 660 + 300, ("d0", "h0"): 660 + 300}
    found = seen(sent, carried)
    assert found.foreign_bytes is not None and found.foreign_bytes[1] == 0
    carried |= {("h1", "d0"): 660 + 500}
    assert seen(sent, carried).foreign_bytes == (("h1", "d0"), 500 - 5 * 36 - 264)


def test_a_link_whose_shaper_has_changed_is_named() -> None:
    assert seen({}, {}, options=b"otherwise").changed == (("d0", "h1"),)


def test_bytes_are_expected_on_every_hop_of_a_longer_route() -> None:
    graph = link_graph(("h1/2 d0", "h2/2 d1", "d0 d1"), 0.25, 2)
    start = {hop: QdiscCounters() for hop in graph.share}
    shaped = LinkReading(0.0, 0.0, start)
    way = graph.routes[0, 1]
    assert len(way) == 3
    end = {hop: QdiscCounters(5000 if hop in way else 0) for hop in graph.share}
    before = Counters(0.0, ProcessorReading(0.0, 2, 5.0, {}), 0.0, shaped, tcp({}, 2))
    after = Counters(
        1.0,
        ProcessorReading(1.0, 2, 6.5, {}),
        0.0,
        LinkReading(1.0, 1.0, end),
        tcp({(0, 1): TcpCounters(5000, 4, 0, 3)}, 2),
    )
    found = conditions(graph, shaped, before, after, QUIET)
    assert found.foreign_bytes is not None and found.foreign_bytes[1] == 0 and found.out_of_order == 3
    assert found.foreign_cpu_s == 0.5 and found.cores == 2


def test_what_is_not_counted_is_missing() -> None:
    counters = Counters(0.0, None, 0.0, None, [{1: None}, {0: None}])
    assert conditions(star(2), None, counters, counters, QUIET) == Conditions(0.0)
