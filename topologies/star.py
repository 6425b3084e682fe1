"""Every device on one switch by a link of its own: a small site with a wired switch or an access point per device."""

from __future__ import annotations

from mininet.topo import Topo


class Star(Topo):
    """Hosts h0 ... hN-1; interface eth0 to the control switch, eth1 to the data switch; ``ctl`` runs the driver.

    The control network carries Ray and is never shaped. The data network carries tensors only.
    """

    def build(self, devices: int, private_dirs: list[str], **_: object) -> None:  # type: ignore[override]
        control, data = self.addSwitch("c0"), self.addSwitch("d0")
        for rank in range(devices):
            # Ray nodes on one machine collide in their session folder, so each host has its own.
            host = self.addHost(f"h{rank}", ip=None, privateDirs=[(path, f"{path}-h{rank}") for path in private_dirs])
            self.addLink(host, control, intfName1=f"h{rank}-control", intfName2=f"c0-h{rank}")
            self.addLink(host, data, intfName1=f"h{rank}-data", intfName2=f"d0-h{rank}")
        controller = self.addHost("ctl", ip=None, inNamespace=False)
        self.addLink(controller, control, intfName1="ctl-control", intfName2="c0-ctl")
