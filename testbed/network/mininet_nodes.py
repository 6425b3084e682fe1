"""Mininet's hosts, switches and interfaces, on the tools that every Linux system has: iproute2 and util-linux.

Mininet itself starts shells with its own program mnexec, makes bridges with brctl and sets addresses with ifconfig.
Those come in packages that a user without administrator rights cannot install.
"""

from __future__ import annotations

import subprocess
from typing import Any

from mininet.link import Intf
from mininet.node import Host, Switch

from testbed.errors import EnvironmentFault


def enter(pid: int | None, *namespaces: str) -> list[str]:
    """The words before a command that run it in the namespaces of a process. namespaces: flags of nsenter."""
    return ["nsenter", "--target", str(pid), *(namespaces or ("--net",))]


class IpInterface(Intf):
    """An interface that is configured with ``ip``."""

    def setIP(self, ipstr: str, prefixLen: int | None = None) -> str:
        self.ip, _, length = ipstr.partition("/")
        self.prefixLen = length or prefixLen
        return self.cmd(f"ip address replace {self.ip}/{self.prefixLen} dev {self.name} && ip link set {self.name} up")

    def setMAC(self, macstr: str) -> str:
        self.mac = macstr
        return self.cmd("ip link set dev", self.name, "address", macstr)


class _Shells:
    """A node whose shell is started with ``unshare`` and entered with ``nsenter``."""

    @classmethod
    def setup(cls) -> None:
        """Nothing is needed beyond what ``testbed.network.probe`` has looked for."""

    def _popen(self, cmd: list[str], **settings: Any) -> subprocess.Popen[Any]:
        """Start what Mininet starts with ``mnexec``. Its flags: c closes files, d makes a session, n new namespaces."""
        words = cmd
        if cmd[0] == "mnexec":
            flags, *words = cmd[1:]
            settings |= {"close_fds": True, "start_new_session": True}
            if flags == "-da":
                pid, *words = words
                # Entering a mount namespace changes the root folder and the current one. The others keep the shell's.
                words = [*enter(int(pid), "--net", "--mount", "--root", "--wd"), *words]
            elif "n" in flags:
                words = ["unshare", "--net", "--mount", *words]
        return subprocess.Popen(words, **settings)

    def cmd(self, *words: str, **settings: Any) -> str:
        """Run a command in the node's shell; ``ip`` where Mininet's interfaces would call ``ifconfig``."""
        if words[0] == "ifconfig":
            name, *state = words[1:]
            words = ("ip link set dev", name, *state) if state else ("ip link show dev", name)
        return super().cmd(*words, **settings)  # type: ignore[misc]

    def must(self, command: str) -> None:
        """Run a command of ``ip`` that prints nothing if it succeeds. EnvironmentFault with what it prints."""
        if said := self.cmd(command).strip():
            raise EnvironmentFault(f"{command}: {' '.join(said.split())}")

    def config(self, mac: str | None = None, ip: str | None = None, **_: Any) -> dict[str, Any]:
        """Set the address of the first interface, and start the loopback interface."""
        if mac is not None:
            self.setMAC(mac)  # type: ignore[attr-defined]
        if ip is not None:
            self.setIP(ip)  # type: ignore[attr-defined]
        self.must("ip link set dev lo up")
        return {}


class NamespaceHost(_Shells, Host):
    """A host: a shell in network and mount namespaces of its own."""


class IpBridge(_Shells, Switch):
    """A switch: a bridge of the kernel, without spanning tree, in the namespace of this process."""

    def start(self, controllers: object) -> None:
        self.must(f"ip link add {self.name} type bridge stp_state 0 forward_delay 0 && ip link set {self.name} up")
        for port in self.intfList():
            if self.name in port.name:
                self.must(f"ip link set dev {port.name} master {self.name} up")

    def stop(self, deleteIntfs: bool = True) -> None:
        self.cmd(f"ip link del {self.name}")
        super().stop(deleteIntfs)
