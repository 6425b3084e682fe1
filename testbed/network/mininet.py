"""The Mininet backend: a network namespace per device, Linux bridges, kernel-shaped links. Runs in the sandbox."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mininet.log import setLogLevel
from mininet.net import Mininet
from mininet.nodelib import LinuxBridge

from testbed.comm.pacing import Pacing
from testbed.errors import EnvironmentFault
from testbed.network.backend import Network
from testbed.network.probe import kernel_qdiscs
from testbed.network.sandbox import scratch
from testbed.network.shaping import LinkPolicy

FORWARDING_TIMEOUT_S = 10.0
UNSHAPED_BPS = 1e10  # before the first shape()
HOST_SETUP = (
    "sysctl -qw net.ipv6.conf.all.disable_ipv6=1",  # no router solicitations on an idle data link
    # Connections live as long as the run and rest between layers: they must not start slowly each time.
    "sysctl -qw net.ipv4.tcp_slow_start_after_idle=0",
    "ip route change 10.2.0.0/24 dev {name}-data initcwnd 64",
    # Offloaded bundles larger than the token bucket would be cut into packets again, at the price of a core.
    "sysctl -qw net.ipv4.tcp_tso_rtt_log=0",
    "ip link set dev {name}-data gso_max_size 25000",
)


class MininetNetwork(Network):
    """``devices`` hosts of a topology from topologies/, addresses 10.1.0.x (control) and 10.2.0.x (data)."""

    name = "mininet"

    def __init__(self, topology: str, devices: int):
        self.topology, self.devices = topology, devices
        self.control_ip = "10.1.0.254"
        self.device_control_ips = [f"10.1.0.{rank + 1}" for rank in range(devices)]
        self.device_data_ips = [f"10.2.0.{rank + 1}" for rank in range(devices)]
        self._policy = LinkPolicy(UNSHAPED_BPS)

    def __enter__(self) -> MininetNetwork:
        setLogLevel("error")
        Mininet.inited = True  # skips fixLimits(), which would change the machine's sysctls for good
        topology = getattr(import_module(f"topologies.{self.topology}"), self.topology.title().replace("_", ""))
        self._net = Mininet(
            topology(devices=self.devices, private_dirs=[str(scratch() / "ray")]),
            switch=LinuxBridge,  # pyright: ignore[reportArgumentType] any Switch will do
            controller=None,
            autoSetMacs=True,
            autoStaticArp=True,
        )
        self._net.start()
        self._net["ctl"].setIP(f"{self.control_ip}/24", intf="ctl-control")
        self._hosts = [self._net[f"h{rank}"] for rank in range(self.devices)]
        for rank, host in enumerate(self._hosts):
            host.setIP(f"{self.device_control_ips[rank]}/24", intf=f"h{rank}-control")
            host.setIP(f"{self.device_data_ips[rank]}/24", intf=f"h{rank}-data")
            for line in HOST_SETUP:
                host.cmd(line.format(name=host.name))
        self._await_forwarding()
        return self

    def __exit__(self, *_: object) -> None:
        self._net.stop()

    def _await_forwarding(self) -> None:
        """A bridge port drops packets until it forwards; the first lost packet would cost a TCP second."""
        deadline = time.monotonic() + FORWARDING_TIMEOUT_S
        for host in self._hosts:
            for address in (self.control_ip, self.device_data_ips[0]):
                while "1 received" not in host.cmd(f"ping -c 1 -W 1 -q {address}"):
                    if time.monotonic() > deadline:
                        raise EnvironmentFault(f"host {host.name} cannot reach {address}: bridge ports do not forward")

    def popen(self, device: int, command: Sequence[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return self._hosts[device].popen(list(command), stdout=output, stderr=subprocess.STDOUT, env=dict(env))

    def shape(self, rate_bps: float, shaper: str) -> None:
        if shaper == "netem" and shaper not in kernel_qdiscs():
            raise EnvironmentFault("this kernel has no netem (module sch_netem)")
        policy = LinkPolicy(rate_bps, shaper)
        for enter, interfaces in self._link_ends():
            lines = "\n".join(line for interface in interfaces for line in policy.commands(interface))
            done = subprocess.run([*enter, "tc", "-batch", "-"], input=lines, capture_output=True, text=True)
            if done.returncode:
                raise EnvironmentFault(
                    f"tc refused {rate_bps:g} bit/s on {', '.join(interfaces)}: {done.stderr.strip()}"
                )
        self._policy = policy

    def _link_ends(self) -> list[tuple[list[str], list[str]]]:
        """Both ends of each data link: how to enter their namespace, and their names in it; the switch first."""
        hosts = [(["mnexec", "-a", str(host.pid)], [f"{host.name}-data"]) for host in self._hosts]
        return [([], [f"d0-{host.name}" for host in self._hosts]), *hosts]

    def pacing(self) -> Pacing:
        return self._policy.pacing()

    @property
    def bucket_bytes(self) -> int:
        return self._policy.bucket_bytes

    def delivered_bytes(self) -> list[int]:
        # The switch port's qdisc counts every packet of an offloaded bundle with its headers; interface counters do
        # not.
        sent = {entry["dev"]: entry["bytes"] for entry in _root_qdiscs([])}
        return [sent.get(f"d0-h{rank}", 0) for rank in range(self.devices)]

    def dropped_packets(self) -> int:
        return sum(
            entry["drops"]
            for enter, interfaces in self._link_ends()
            for entry in _root_qdiscs(enter)
            if entry["dev"] in interfaces
        )

    def describe(self) -> dict[str, object]:
        return {
            "backend": self.name,
            "topology": self.topology,
            "data_addresses": self.device_data_ips,
            "control_addresses": self.device_control_ips,
            "kernel_qdiscs": kernel_qdiscs(),
            "shaper": "on both ends of each data link; tbf's bucket is charged by hold-back before idle links send",
            "bucket_bytes": self.bucket_bytes,
            "tcp": {"congestion_control": "cubic", "host_setup": HOST_SETUP},
            "tc": self._policy.commands("d0-h0"),
        }


def _root_qdiscs(enter: list[str]) -> list[dict[str, Any]]:
    """Counters of the outermost qdisc of each interface in a namespace."""
    shown = subprocess.run([*enter, "tc", "-s", "-j", "qdisc", "show"], capture_output=True, text=True, check=True)
    return [entry for entry in json.loads(shown.stdout) if entry.get("root")]
