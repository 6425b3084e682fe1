"""The interface of a network backend to the cluster and to experiments."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.comm.routes import RankLinks
from testbed.network.link_watch import TokenBucket
from testbed.network.qdisc import LinkReading
from testbed.network.shaping import QUEUE_KB
from topologies.link_graph import Hop, LinkGraph


class Network(ABC):
    """Hosts joined by links whose rates can change during a run. A context manager: leaving it removes the network.

    graph: the data links. control_ip: address of the driver. device_control_ips, device_data_ips: addresses of each
    device on the control network and on the data network.
    """

    name: str
    graph: LinkGraph
    control_ip: str
    device_control_ips: list[str]
    device_data_ips: list[str]

    @abstractmethod
    def __enter__(self) -> Network: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def popen(self, device: int, command: Sequence[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a process on a device. Its output goes to ``log``."""

    @abstractmethod
    def shape(self, rate_bps: float, shaper: str, queue_kb: float = QUEUE_KB) -> None:
        """Set both directions of every data link to its share of ``rate_bps`` bits/s.

        shaper: one of ``testbed.network.shaping.SHAPERS``. queue_kb: queue length of switch ports, in thousands of
        bytes. EnvironmentFault if this backend cannot do that.
        """

    @abstractmethod
    def links_of(self, rank: int, algorithm: str) -> RankLinks:
        """How a rank must pace bytes for the links as they are now. algorithm: of all-gathers."""

    @property
    @abstractmethod
    def bucket_bytes(self) -> int:
        """Burst credit of the link with the largest token bucket: bytes that pass without delay when it was idle."""

    @property
    @abstractmethod
    def token_buckets(self) -> dict[Hop, TokenBucket]:
        """The token bucket of each hop; empty where something else shapes the links."""

    @abstractmethod
    def link_counters(self) -> LinkReading | None:
        """The counters of the queue of each direction of each link now; None without counters."""

    def carried_bytes(self) -> dict[Hop, int] | None:
        """Bytes that each direction of each link has carried so far, with packet headers; None without counters."""
        reading = self.link_counters()
        return None if reading is None else {hop: found.bytes for hop, found in reading.counters.items()}

    def dropped_packets(self) -> int | None:
        """Packets that the links' queues have dropped so far; None without counters."""
        reading = self.link_counters()
        return None if reading is None else sum(found.drops for found in reading.counters.values())

    def refused_settings(self) -> list[str]:
        """Settings that the kernel does not have as links need them, in words; empty if there is none."""
        return []

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Settings for the manifest: topology, addresses, tc state, capabilities."""
