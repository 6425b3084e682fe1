"""The Mininet backend: one network namespace for each device, Linux bridges, and kernel-shaped links.

It runs in the sandbox. Each device has one data address, on its loopback interface, and a route to each other device as
computed by LinkGraph. Devices forward packets where a route leads through them. Hardware addresses of neighbors are
set, so data links carry nothing but tensors.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from mininet.log import setLogLevel
from mininet.net import Mininet

from testbed.comm.pacing import Pacing
from testbed.comm.routes import RankLinks, Route
from testbed.errors import EnvironmentFault
from testbed.network import sysctls
from testbed.network.backend import Network
from testbed.network.link_watch import TokenBucket
from testbed.network.mininet_nodes import IpBridge, IpInterface, NamespaceHost, enter
from testbed.network.probe import kernel_qdiscs
from testbed.network.qdisc import LinkReading, QdiscReader
from testbed.network.sandbox import scratch
from testbed.network.shaping import PACKET_BYTES, QUEUE_KB, SHAPERS, LinkPolicy
from topologies.link_graph import Hop, LinkGraph
from topologies.mininet_topo import LinkGraphTopo

FORWARDING_TIMEOUT_S = 4.0
UNSHAPED_BPS = 1e10  # assumed rate before the first shape()
SYSCTLS = {
    "net.ipv6.conf.all.disable_ipv6": "1",  # no router solicitations on an idle data link
    # Connections live as long as the run and are idle between layers. They must not return to slow start each time.
    "net.ipv4.tcp_slow_start_after_idle": "0",
}
FINE_WITHOUT = {"net.ipv6.conf.all.disable_ipv6": sysctls.MISSING}  # a kernel without IPv6
# What hosts need that forward packets for others. The routes of the two directions may differ.
FORWARDING = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.rp_filter": "0"}
LINK_FORWARDING = "net.ipv4.conf.{}.rp_filter"
# One core receives all packets. Otherwise the core that forwards a packet also receives it, packets on two cores
# overtake each other, and TCP treats reordered packets as lost: it retransmits and slows down (docs/decisions/0006).
RECEIVERS = {"net.core.rps_default_mask": "1"}
ROUTE_OPTIONS = "initcwnd 64"


class OrderedHost(NamespaceHost):
    """A host on whose links one core receives all packets, whichever namespace creates them."""

    def __init__(self, name: str, **settings: Any):
        super().__init__(name, **settings)
        sysctls.apply(RECEIVERS, enter(self.pid))  # kernels that have this setting for the machine only ignore it here


class MininetNetwork(Network):
    """The hosts and switches of a LinkGraph, with addresses 10.1.0.x (control) and 10.2.0.x (data)."""

    name = "mininet"

    def __init__(self, graph: LinkGraph):
        self.graph = graph
        self.control_ip = "10.1.0.254"
        self.device_control_ips = [f"10.1.0.{rank + 1}" for rank in range(graph.devices)]
        self.device_data_ips = [f"10.2.0.{rank + 1}" for rank in range(graph.devices)]
        self._link = LinkPolicy(UNSHAPED_BPS)  # for a link whose share is 1
        self.keeps_packet_order = False
        self._sysctls: dict[str, str] = {}  # as read back
        self.sysctl_refused: dict[str, str] = {}  # name -> the value that stays

    def __enter__(self) -> MininetNetwork:
        setLogLevel("error")
        # On links that are created after this call.
        self.keeps_packet_order = _kept(sysctls.apply(RECEIVERS), RECEIVERS)
        Mininet.inited = True  # skips fixLimits(), which would change the machine's sysctls permanently
        try:
            self._net = Mininet(
                LinkGraphTopo(graph=self.graph, private_dirs=[str(scratch() / "ray")]),
                host=OrderedHost,
                switch=IpBridge,  # pyright: ignore[reportArgumentType] any Switch will do
                intf=IpInterface,
                controller=None,
                autoSetMacs=True,
            )
            self._net.start()
        except EnvironmentFault:
            raise
        except Exception as error:  # Mininet raises no narrower class
            raise EnvironmentFault(f"Mininet cannot make hosts and links: {' '.join(str(error).split())}") from error
        self._net["ctl"].setIP(f"{self.control_ip}/24", intf="ctl-control")
        self._hosts = [self._net[f"h{rank}"] for rank in range(self.graph.devices)]
        # For each namespace: the command to enter it, and the hops that begin there. Switches are in the namespace of
        # this process.
        self._namespaces: list[tuple[list[str], list[Hop]]] = [([], self._hops("d"))]
        for rank, host in enumerate(self._hosts):
            host.setIP(f"{self.device_control_ips[rank]}/24", intf=f"h{rank}-control")
            hops = self._hops(f"{host.name}-")
            entering = enter(host.pid)
            self._namespaces.append((entering, hops))
            self._set(host.name, entering, hops)
            _run([*entering, "ip", "-batch", "-"], "\n".join(self._addresses(rank)))
        self._await_forwarding()
        inside = [(None, self._namespaces[0][1])]
        inside += [(host.pid, hops) for host, (_, hops) in zip(self._hosts, self._namespaces[1:], strict=True)]
        self._qdiscs = QdiscReader([(pid, {hop: _interface(hop) for hop in hops}) for pid, hops in inside])
        return self

    def _set(self, host: str, entering: list[str], hops: list[Hop]) -> None:
        """Set a host's sysctls. EnvironmentFault if it must forward packets and the kernel refuses a setting."""
        forwarding = FORWARDING | {LINK_FORWARDING.format(_interface(hop)): "0" for hop in hops}
        forwards = any(hop[0] == host for (rank, _), hops in self.graph.routes.items() for hop in hops[1:])
        wanted = SYSCTLS | (forwarding if forwards else {})
        found = sysctls.apply(wanted, entering)
        for name in forwarding if forwards else ():
            if found[name] != wanted[name]:
                raise EnvironmentFault(f"{host} must forward packets, but {name} stays {found[name]}")
        self._sysctls |= found
        self.sysctl_refused |= {
            name: value for name, value in found.items() if value not in (wanted[name], FINE_WITHOUT.get(name))
        }

    def __exit__(self, *_: object) -> None:
        self._qdiscs.close()
        self._net.stop()

    def _hops(self, prefix: str) -> list[Hop]:
        """Hops whose interface name has this prefix."""
        return [hop for hop in self.graph.share if _interface(hop).startswith(prefix)]

    def _addresses(self, rank: int) -> Iterator[str]:
        """Lines for ``ip -batch -``: the data address, routes and neighbors of a host."""
        own = self.device_data_ips[rank]
        yield f"address add {own}/32 dev lo"
        for peer in range(self.graph.devices):
            if peer == rank:
                continue
            hops = self.graph.routes[rank, peer]
            before, following = next(hop for hop in hops if hop[1].startswith("h"))  # the first host on the route
            to, via = self.device_data_ips[peer], self.device_data_ips[int(following[1:])]
            out = _interface(hops[0])
            if via != to:
                yield f"route replace {to}/32 via {via} dev {out} onlink src {own} {ROUTE_OPTIONS}"
                continue
            yield f"route replace {to}/32 dev {out} src {own} {ROUTE_OPTIONS}"
            mac = self._net[following].intf(f"{following}-{before}").MAC()
            yield f"neighbor replace {to} lladdr {mac} dev {out} nud permanent"

    def _await_forwarding(self) -> None:
        """Wait until all bridge ports forward. They drop earlier packets, and TCP would retry only after a second."""
        deadline = time.monotonic() + FORWARDING_TIMEOUT_S
        while waiting := [port["ifname"] for port in _bridge_ports() if port.get("state") != "forwarding"]:
            if time.monotonic() > deadline:
                raise EnvironmentFault(f"the bridge ports {', '.join(waiting)} do not forward")
            time.sleep(0.01)

    def host_pid(self, device: int) -> int:
        """The process of a device's shell, which is in the namespaces of the device."""
        return self._hosts[device].pid

    def popen(self, device: int, command: Sequence[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return self._hosts[device].popen(list(command), stdout=output, stderr=subprocess.STDOUT, env=dict(env))

    def shape(self, rate_bps: float, shaper: str, queue_kb: float = QUEUE_KB) -> None:
        if shaper == "netem" and shaper not in kernel_qdiscs():
            raise EnvironmentFault("this kernel has no netem (module sch_netem)")
        self._link = LinkPolicy(rate_bps, shaper, queue_kb)

        def commands(hops: list[Hop]) -> str:
            return "\n".join(line for hop in hops for line in self._commands(hop))

        def gso_limits(hops: list[Hop]) -> str:
            lines = [f"link set dev {_interface(hop)} gso_max_segs {self.gso_packets}" for hop in hops]
            return "\n".join([*lines, "route flush cache"])  # a new route lookup reads the limit

        self.run_in_namespaces(["tc", "-batch", "-"], commands)
        self.run_in_namespaces(["ip", "-batch", "-"], gso_limits)

    def _policy(self, hop: Hop) -> LinkPolicy:
        return LinkPolicy(self._link.rate_bps * self.graph.share[hop], self._link.shaper, self._link.queue_kb)

    def _commands(self, hop: Hop) -> list[str]:
        return self._policy(hop).commands(_interface(hop), host=hop[0].startswith("h"))

    def run_in_namespaces(self, command: list[str], text: Callable[[list[Hop]], str] = lambda hops: "") -> list[str]:
        """Run a command in all namespaces with data links, in parallel. Returns the output of each.

        text: makes the command's input from the hops that begin in the namespace. EnvironmentFault if a command fails.
        """
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running = [
            (hops, subprocess.Popen([*enter, *command], **pipes, text=True)) for enter, hops in self._namespaces if hops
        ]
        ended = [(hops, process, *process.communicate(text(hops))) for hops, process in running]
        outputs = []
        for hops, process, output, errors in ended:
            if process.returncode:
                reason = errors.strip().partition("\n")[0]
                raise EnvironmentFault(f"{' '.join(command)} failed on {', '.join(map(_interface, hops))}: {reason}")
            outputs.append(output)
        return outputs

    def links_of(self, rank: int, algorithm: str) -> RankLinks:
        pacings: dict[Hop, Pacing] = {}
        routes: dict[int, Route] = {}
        for peer in range(self.graph.devices):
            if peer != rank:
                hop = self.graph.slowest(rank, peer)
                policy = self._policy(hop)
                pacing = pacings.setdefault(hop, policy.pacing())
                routes[peer] = Route(pacing, policy.rate_bps, self.graph.contending_senders[hop])
        slowest_bps = min((self._policy(self.graph.slowest(*ends)).rate_bps for ends in self.graph.routes), default=inf)
        return RankLinks(routes, slowest_bps, algorithm, self.graph.subnets)

    @property
    def bucket_bytes(self) -> int:
        return max((self._policy(hop).bucket_bytes for hop in self.graph.share), default=0)

    @property
    def gso_packets(self) -> int:
        """The largest number of packets in a GSO segment that no link has to split (LinkPolicy.gso_packets)."""
        return min((self._policy(hop).gso_packets for hop in self.graph.share), default=1)

    @property
    def token_buckets(self) -> dict[Hop, TokenBucket]:
        policies = {hop: self._policy(hop) for hop in self.graph.share} if self._link.shaper == SHAPERS[0] else {}
        return {
            hop: TokenBucket(policy.rate_bps / 8, policy.bucket_bytes, policy.gso_packets * PACKET_BYTES)
            for hop, policy in policies.items()
        }

    def link_counters(self) -> LinkReading:
        # The qdisc counts every packet of a GSO segment with its headers; interface counters do not.
        return self._qdiscs.read()

    def refused_settings(self) -> list[str]:
        return [f"{name} stays {value}" for name, value in sorted(self.sysctl_refused.items())]

    def describe(self) -> dict[str, object]:
        # One hop represents all hops with the same share and the same kind of sender.
        kinds = {(share, hop[0][0]): hop for hop, share in self.graph.share.items()}
        return {
            "backend": self.name,
            "links": [f"{a} {b} {share:g}" for a, b, share in self.graph.shares],
            "data_addresses": self.device_data_ips,
            "control_addresses": self.device_control_ips,
            "kernel_qdiscs": kernel_qdiscs(),
            "shaper": "on both ends of each data link; messages wait for the burst credit of tbf's bucket",
            "bucket_bytes": self.bucket_bytes,
            "queue_kb": self._link.queue_kb,
            "packet_order": "kept: one core receives all packets"
            if self.keeps_packet_order
            else f"not kept: this kernel does not set {', '.join(RECEIVERS)}",
            "gso_packets": self.gso_packets,
            "sysctl": self._sysctls | self.sysctl_refused,
            "route": ROUTE_OPTIONS,
            "tc": {_interface(hop): self._commands(hop) for hop in kinds.values()},
        }


def _interface(hop: Hop) -> str:
    """The interface at the beginning of a hop."""
    return "-".join(hop)


def _kept(found: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether these settings are in force. The kernel shows a CPU mask with leading zeros."""
    return all(found[name].lstrip("0,") == value.lstrip("0,") for name, value in wanted.items())


def _bridge_ports() -> list[dict[str, Any]]:
    """The ports of all bridges in this namespace, as ``bridge`` shows them."""
    return json.loads(_run(["bridge", "-json", "link", "show"], "") or "[]")


def _run(command: list[str], text: str) -> str:
    """Run a command with this input and return its output. EnvironmentFault if it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentFault(f"{' '.join(command)} failed: {done.stderr.strip().partition(chr(10))[0]}")
    return done.stdout
