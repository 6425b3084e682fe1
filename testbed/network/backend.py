"""What a network backend offers to the cluster and to experiments."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.comm.pacing import Pacing


class Network(ABC):
    """Hosts joined by links whose rate can be changed while everything runs. A context manager: leaving it ends it.

    control_ip: address of the driver. device_control_ips, device_data_ips: addresses of each device on the two
    networks.
    """

    name: str
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
    def shape(self, rate_bps: float, shaper: str) -> None:
        """Set every data link to ``rate_bps`` bits/s both ways with one of ``testbed.network.shaping.SHAPERS``."""

    @abstractmethod
    def pacing(self) -> Pacing:
        """How ranks must hand bytes to the links as they are now."""

    @property
    @abstractmethod
    def bucket_bytes(self) -> int:
        """What a link that was idle lets through at once."""

    @abstractmethod
    def delivered_bytes(self) -> list[int] | None:
        """Bytes that each device's link has delivered to it so far, with packet headers; None if uncounted."""

    @abstractmethod
    def dropped_packets(self) -> int | None:
        """Packets that the links' queues have refused so far; None if uncounted."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Settings for the manifest: topology, addresses, tc state, capabilities."""
