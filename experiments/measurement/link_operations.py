"""Points of the fidelity experiment: one operation of known size over links of known rate, and its ideal time.

The ideal time is the sum over the operation's stages. Each stage takes as long as its busiest link, with frame and
packet headers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.measurement.calibration import FULL_SHARE
from testbed.comm.frame import HEADER_BYTES
from testbed.comm.pacing import wire_bytes
from testbed.network.shaping import QUEUE_KB
from topologies.link_graph import Hop, LinkGraph, Load

SLACK_S, MESSAGE_SLACK_S = 1e-3, 0.5e-3  # tolerated time beyond the links': minimum of an operation, and per message
INCASTS = ("incast_all", "incast_ordered")


@dataclass(frozen=True)
class LinkOperation:
    """A point: one operation on ``devices`` devices, ``size_bytes`` from each, over links of ``rate_mbps``."""

    pattern: str
    shaper: str
    devices: int
    rate_mbps: float
    size_bytes: int
    queue_kb: float

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that identify this point."""
        return vars(self)

    @property
    def link(self) -> tuple[float, str, float]:
        """The link setting of this point: rate, shaper, queue."""
        return self.rate_mbps, self.shaper, self.queue_kb

    @property
    def label(self) -> str:
        """Description for messages."""
        queue = "" if self.queue_kb == QUEUE_KB else f", queues of {self.queue_kb:g} KB"
        return (
            f"{self.pattern} of {self.size_bytes:,} B, {self.devices} devices, {self.rate_mbps:g} Mbps, "
            f"{self.shaper}{queue}"
        )

    @property
    def is_incast(self) -> bool:
        """Whether all other devices send to one device, which may overflow its queue."""
        return self.pattern in INCASTS

    def stages(self, graph: LinkGraph, algorithm: str) -> list[list[Load]]:
        """The payload loads of each stage."""
        size, ranks = float(self.size_bytes), range(self.devices)
        others, pairs = ranks[1:], range(0, self.devices - 1, 2)
        if self.pattern == "all_gather":
            return graph.gather_loads(algorithm, size)
        if self.pattern == "all_reduce":  # two passes around the ring, one share of the numbers at a time
            share = 4.0 * -(-self.size_bytes // 4 // self.devices)
            return [[(rank, (rank + 1) % self.devices, share) for rank in ranks]] * 2 * len(others)
        if self.pattern == "incast_all":
            return [[(rank, 0, size) for rank in others]]
        if self.pattern == "incast_ordered":
            return [[(rank, 0, size)] for rank in others]
        back = pairs if self.pattern == "both_ways" else ()
        return [[*((rank, rank + 1, size) for rank in pairs), *((rank + 1, rank, size) for rank in back)]]

    def ideal_s(self, graph: LinkGraph, algorithm: str, rate_bps: float) -> float:
        """Seconds on ideal links, with frame headers and packet headers."""
        framed = [
            [(rank, peer, wire_bytes(HEADER_BYTES + round(size))) for rank, peer, size in stage]
            for stage in self.stages(graph, algorithm)
        ]
        return graph.stages_s(framed, rate_bps)

    def payload_s(self, graph: LinkGraph, algorithm: str, rate_bps: float) -> float:
        """Seconds on ideal links without headers, as cost models count."""
        return graph.stages_s(self.stages(graph, algorithm), rate_bps)

    def full_hop(self, graph: LinkGraph, algorithm: str) -> Hop | None:
        """The busiest hop if it is busy throughout, so that its rate can be measured; else None."""
        stages = self.stages(graph, algorithm)
        busy_s = graph.busy_s([load for stage in stages for load in stage], 1.0)
        busiest = max(busy_s, key=lambda hop: busy_s[hop])
        return busiest if busy_s[busiest] >= FULL_SHARE * graph.stages_s(stages, 1.0) else None

    def slack_s(self) -> float:
        """Tolerated seconds of hosts and transport beyond the links' time, by the messages that a device receives."""
        others = self.devices - 1
        messages = {"all_gather": others, "all_reduce": 2 * others, "incast_all": others}
        messages["incast_ordered"] = 2 * others  # rank 0 requests each one
        return max(SLACK_S, MESSAGE_SLACK_S * messages.get(self.pattern, 1))
