"""Settings are reported as the kernel has them, not as they were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.errors import EnvironmentFault
from testbed.network import mininet, sysctls
from testbed.network.mininet import MininetNetwork
from topologies.link_graph import LinkGraph, link_graph, star


@pytest.mark.skipif(not Path("/proc/sys/kernel/ostype").exists(), reason="Linux only")
def test_what_the_kernel_refuses_or_lacks_is_read_back() -> None:
    wanted = {"kernel.ostype": "Minix", "net.ipv4.no_such_setting": "1"}
    assert sysctls.apply(wanted) == {"kernel.ostype": "Linux", "net.ipv4.no_such_setting": sysctls.MISSING}
    assert sysctls.apply(wanted, ["false"]) == dict.fromkeys(wanted, sysctls.MISSING)


def network(graph: LinkGraph, found: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> MininetNetwork:
    """A network whose first host's kernel answers ``found``, and makes all other settings."""
    monkeypatch.setattr(
        mininet.sysctls, "apply", lambda wanted, entering=(): {name: found.get(name, to) for name, to in wanted.items()}
    )
    made = MininetNetwork(graph)
    made._set("h0", [], [hop for hop in graph.share if hop[0] == "h0"])
    return made


def test_a_host_that_cannot_forward_is_refused_only_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    stays = {"net.ipv4.ip_forward": "0"}
    with pytest.raises(EnvironmentFault, match="h0 must forward packets, but net.ipv4.ip_forward stays 0"):
        network(link_graph(("h* next",), 1.0, 4), stays, monkeypatch)
    assert network(star(4), stays, monkeypatch).sysctl_refused == {}  # neither needed nor asked for


def test_a_kernel_without_ipv6_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"net.ipv6.conf.all.disable_ipv6": sysctls.MISSING, "net.ipv4.tcp_slow_start_after_idle": "1"}
    made = network(star(2), found, monkeypatch)
    assert made.sysctl_refused == {"net.ipv4.tcp_slow_start_after_idle": "1"}
    assert made.refused_settings() == ["net.ipv4.tcp_slow_start_after_idle stays 1"]  # it degrades rows
    assert found.items() <= made._sysctls.items()
