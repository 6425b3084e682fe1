"""What a network backend offers to the cluster and to experiments."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.comm.routes import RankLinks
from testbed.network.shaping import QUEUE_KB
from topologies.link_graph import Hop, LinkGraph


class Network(ABC):
    """Hosts joined by links whose rate can be changed while everything runs. A context manager: leaving it ends it.

    graph: the data links. control_ip: address of the driver. device_control_ips, device_data_ips: addresses of each
    device on the two networks.
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
        """Start a process on a device, with its output in ``log``."""

    @abstractmethod
    def shape(self, rate_bps: float, shaper: str, queue_kb: float = QUEUE_KB) -> None:
        """Set every data link both ways to its share of ``rate_bps`` bits/s, and switches' ports to a queue length.

        shaper: one of ``testbed.network.shaping.SHAPERS``.
        """

    @abstractmethod
    def links_of(self, rank: int, algorithm: str) -> RankLinks:
        """How a rank must hand bytes to the links as they are now, and how it gathers."""

    @property
    @abstractmethod
    def bucket_bytes(self) -> int:
        """What a link that was idle lets through at once; of the link with the largest bucket."""

    @abstractmethod
    def carried_bytes(self) -> dict[Hop, int] | None:
        """Bytes that each link has carried so far, each way, with packet headers; None if uncounted."""

    @abstractmethod
    def dropped_packets(self) -> int | None:
        """Packets that the links' queues have refused so far; None if uncounted."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Settings for the manifest: topology, addresses, tc state, capabilities."""
