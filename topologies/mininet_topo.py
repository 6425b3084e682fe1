"""Hosts and switches linked as a description in conf/topology/ says (topologies.link_graph)."""

from __future__ import annotations

from mininet.topo import Topo

from topologies.link_graph import LinkGraph


class Described(Topo):
    """Hosts h0 ... hN-1 and switches d0, d1, ...; the end of a data link at A towards B is interface A-B.

    The control network, a switch c0 with a link hN-control for each host, carries Ray and is never shaped; ``ctl`` runs
    the driver. The data network carries tensors only.
    """

    def build(self, graph: LinkGraph, private_dirs: list[str], **_: object) -> None:  # type: ignore[override]
        control = self.addSwitch("c0")
        for switch in graph.switches:
            self.addSwitch(switch)
        for rank in range(graph.devices):
            # Ray nodes on one machine collide in their session folder, so each host has its own.
            host = self.addHost(f"h{rank}", ip=None, privateDirs=[(path, f"{path}-h{rank}") for path in private_dirs])
            self.addLink(host, control, intfName1=f"h{rank}-control", intfName2=f"c0-h{rank}")
        for number, (a, b, _share) in enumerate(graph.shares):
            names = {"intfName1": f"{a}-{b}", "intfName2": f"{b}-{a}"}
            self.addLink(a, b, **names, addr1=_mac(number, 1), addr2=_mac(number, 2))
        controller = self.addHost("ctl", ip=None, inNamespace=False)
        self.addLink(controller, control, intfName1="ctl-control", intfName2="c0-ctl")


def _mac(link: int, end: int) -> str:
    """An address of our own for one end of a data link, which neighbors are told instead of asking for it."""
    return f"02:00:{link >> 16 & 255:02x}:{link >> 8 & 255:02x}:{link & 255:02x}:{end:02x}"
