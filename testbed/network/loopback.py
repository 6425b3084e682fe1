"""The loopback backend: all devices on this machine, links paced in the transport. Needs no root.

Tensors cross real sockets, but the kernel does not shape them. Results therefore show the emulator's pacing, not a
network stack under load.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.comm.pacing import TransportPacing
from testbed.comm.routes import RankLinks
from testbed.errors import EnvironmentFault
from testbed.network.backend import Network
from testbed.network.link_watch import TokenBucket
from testbed.network.shaping import QUEUE_KB, SHAPERS
from topologies.link_graph import Hop, LinkGraph


class LoopbackNetwork(Network):
    """Devices on 127.0.0.1, each with one link. The transport can pace only a star."""

    name = "loopback"
    control_ip = "127.0.0.1"

    def __init__(self, graph: LinkGraph):
        self.graph = graph
        self.device_control_ips = self.device_data_ips = ["127.0.0.1"] * graph.devices

    def __enter__(self) -> LoopbackNetwork:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def popen(self, device: int, command: Sequence[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(list(command), stdout=output, stderr=subprocess.STDOUT, env=dict(env))

    def shape(self, rate_bps: float, shaper: str, queue_kb: float = QUEUE_KB) -> None:
        """Keep the rate for ``links_of``, by which ranks pace themselves."""
        if shaper != SHAPERS[0]:
            raise EnvironmentFault(f"loopback links are paced in the transport; {shaper} needs network=mininet")
        if queue_kb != QUEUE_KB:
            raise EnvironmentFault(f"loopback links have no queue; one of {queue_kb:g} KB needs network=mininet")
        self._rate_bps = rate_bps

    def links_of(self, rank: int, algorithm: str) -> RankLinks:
        rate_bps = self._rate_bps
        return RankLinks.one(rank, self.graph.devices, TransportPacing(rate_bps), rate_bps, algorithm)

    @property
    def bucket_bytes(self) -> int:
        return 0

    @property
    def token_buckets(self) -> dict[Hop, TokenBucket]:
        return {}

    def link_counters(self) -> None:
        return None

    def describe(self) -> dict[str, object]:
        return {"backend": self.name, "shaper": "links paced in the transport; no kernel shaping"}
