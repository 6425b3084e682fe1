"""A LinkGraph as a Mininet topology (topologies.link_graph)."""

from __future__ import annotations

from mininet.topo import Topo

from topologies.link_graph import LinkGraph


class LinkGraphTopo(Topo):
    """Hosts h0 ... hN-1, and switches d0, d1, .... The data link from A to B has interface A-B at A.

    Two networks connect the hosts. The control network carries Ray and is never shaped: a switch c0, with a link to
    each host and to the host ``ctl`` of the driver. The data network carries tensors only.
    """

    def build(self, graph: LinkGraph, private_dirs: list[str], **_: object) -> None:  # type: ignore[override]
        control = self.addSwitch("c0")
        for switch in graph.switches:
            self.addSwitch(switch)
        for rank in range(graph.devices):
            # Ray nodes on one machine would share a session folder, so each host has a private one.
            host = self.addHost(f"h{rank}", ip=None, privateDirs=[(path, f"{path}-h{rank}") for path in private_dirs])
            self.addLink(host, control, intfName1=f"h{rank}-control", intfName2=f"c0-h{rank}")
        for number, (a, b, _share) in enumerate(graph.shares):
            names = {"intfName1": f"{a}-{b}", "intfName2": f"{b}-{a}"}
            self.addLink(a, b, **names, addr1=_mac(number, 1), addr2=_mac(number, 2))
        controller = self.addHost("ctl", ip=None, inNamespace=False)
        self.addLink(controller, control, intfName1="ctl-control", intfName2="c0-ctl")


def _mac(link: int, end: int) -> str:
    """A fixed hardware address for one end of a data link, so that neighbors need no ARP."""
    return f"02:00:{link >> 16 & 255:02x}:{link >> 8 & 255:02x}:{link & 255:02x}:{end:02x}"
