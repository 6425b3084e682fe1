"""Run by a test: clusters on several topologies; the bytes on each link, and the packets that a short queue drops."""

from __future__ import annotations

import json
import sys

from omegaconf import OmegaConf

from testbed.comm.pacing import wire_bytes
from testbed.config.fields import CONF
from testbed.network.mininet import MininetNetwork
from testbed.network.sandbox import inside, supervise
from testbed.session import Session
from topologies.link_graph import link_graph

DEVICES, MBPS, SIZE, REPEATS = 4, 20.0, 100_000, 3
SMALL, SMALL_REPEATS = 320, 9  # ASTRA's codes of a layer at G = 1
QUEUES_KB = (1000.0, 8.0)
FAST_MBPS, LARGE, LARGE_REPEATS = 100.0, 800_000, 8


def main(names: list[str]) -> int:
    """Print a line of JSON for each topology of conf/topology/ that is named."""
    if not inside():
        return supervise(names, "mininet", module="tests.emulation.links_drill")
    for name in names:
        described = OmegaConf.load(CONF / "topology" / f"{name}.yaml")
        graph = link_graph(tuple(described.links), described.trunk_share, DEVICES)
        with Session("mininet", graph) as session:
            session.shape(MBPS)
            loads = [load for stage in graph.gather_loads(session.all_gather, SIZE) for load in stage]
            payload = {hop: seconds * graph.share[hop] for hop, seconds in graph.busy_s(loads, 8.0).items()}
            idle, before = session.idle_bytes(), session.network.carried_bytes()
            seconds = session.collective_s("all_gather", SIZE, REPEATS)
            after = session.network.carried_bytes()
            assert before is not None and after is not None
            brief = session.collective_s("all_gather", SMALL, SMALL_REPEATS)
            dropped = []
            for queue_kb in QUEUES_KB if graph.switches else ():
                session.shape(MBPS, queue_kb=queue_kb)
                drops = session.network.dropped_packets() or 0
                session.rank_times("incast_all", SIZE, 1)
                dropped.append((session.network.dropped_packets() or 0) - drops)
            session.shape(FAST_MBPS)
            reordered, packets, sent = _reordered(session), *_packets(session)
            session.collective_s("all_gather", LARGE, LARGE_REPEATS)
            packets_after, sent_after = _packets(session)
            found = {
                "reordered": _reordered(session) - reordered,
                "packets_per_segment": (packets_after - packets) / (sent_after - sent),
                "in_order": session.network.describe()["packet_order"],
                "topology": name,
                "all_gather": session.all_gather,
                "idle": idle,
                "ideal_s": graph.stages_s(graph.gather_loads(session.all_gather, SIZE), 1e6 * MBPS),
                "seconds": min(seconds),
                "small_ideal_s": graph.stages_s(graph.gather_loads(session.all_gather, wire_bytes(SMALL)), 1e6 * MBPS),
                "small_seconds": min(brief),
                "carried": {"-".join(h): [(after[h] - before[h]) / REPEATS, payload[h]] for h in payload},
                "dropped": dropped,
            }
            print(json.dumps(found), flush=True)
    return 0


def _reordered(session: Session) -> int:
    """Number of reordering events that all hosts' TCP detected."""
    assert isinstance(session.network, MininetNetwork)
    count = 0
    for shown in session.network.run_in_namespaces(["cat", "/proc/net/netstat"]):
        names, values = (line.split() for line in shown.splitlines()[:2])
        count += int(values[names.index("TCPSACKReorder")])
    return count


def _packets(session: Session) -> tuple[int, int]:
    """(packets, GSO segments) that all data links have carried."""
    assert isinstance(session.network, MininetNetwork)
    links = {"-".join(hop) for hop in session.graph.share}
    segments = 0
    for shown in session.network.run_in_namespaces(["ip", "-s", "-j", "link"]):
        segments += sum(link["stats64"]["tx"]["packets"] for link in json.loads(shown) if link["ifname"] in links)
    return sum(found.packets for found in session.network.link_counters().counters.values()), segments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
