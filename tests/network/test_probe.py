"""The probe runs the steps of a run. What fails is named with its step and a remedy, and ``auto`` never fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.device.priority import NORMAL, REALTIME
from testbed.errors import EnvironmentFault
from testbed.network import probe
from testbed.network.probe import Trial, choose_backend, shortcomings, try_mininet
from topologies.link_graph import link_graph, star

needs_mininet = pytest.mark.skipif(bool(try_mininet(star(2)).reason), reason=try_mininet(star(2)).reason)
RING = link_graph(("h* next",), 1.0, 4)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Puts a shell script before a tool of the system."""

    def put(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    try_mininet.cache_clear()
    yield put
    try_mininet.cache_clear()


@needs_mininet
@pytest.mark.parametrize("graph", [star(1), star(2), RING])
def test_a_trial_says_what_the_network_can_do(graph: object) -> None:
    trial = try_mininet(graph)  # type: ignore[arg-type]
    assert not trial.reason
    assert trial.facts["priority"] in (REALTIME, NORMAL) and "tbf" in trial.facts["qdiscs"]


@needs_mininet
@pytest.mark.parametrize(
    ("tool", "script", "step"),
    [
        (
            "mount",
            "echo 'mount: /dev/shm: permission denied' >&2; exit 32",
            "the sandbox: a private /dev/shm: mount: /dev",
        ),
        ("ip", "echo 'RTNETLINK answers: Not supported' >&2; exit 2", "the sandbox: the loopback interface: RTNETLINK"),
        (
            "tc",
            "echo 'Error: Specified qdisc kind is unknown.' >&2; exit 2",
            "shaping the links: tc -batch - failed on",
        ),
        ("bridge", 'echo \'[{"ifname": "d0-h0", "state": "blocking"}]\'', "the bridge ports d0-h0 do not forward"),
        ("bash", "exit 127", "hosts and links"),
    ],
)
def test_auto_falls_back_when_a_step_of_a_run_fails(
    fake: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tool: str, script: str, step: str
) -> None:
    monkeypatch.setattr(probe, "TRIAL_S", 4.0)
    fake(tool, script)
    assert choose_backend("auto") == "loopback"
    assert step in try_mininet(star(2)).reason and "\n" not in try_mininet(star(2)).reason
    with pytest.raises(EnvironmentFault, match="network=loopback"):
        choose_backend("mininet")


@needs_mininet
def test_only_tools_that_every_system_has_are_used(fake: Callable[[str, str], None], tmp_path: Path) -> None:
    for tool in ("sysctl", "mnexec", "brctl", "ifconfig", "ethtool", "ping", "route", "arp"):
        fake(tool, f"echo {tool} >>{tmp_path}/called; exit 1")
    assert choose_backend("auto", RING) == "mininet"
    assert not (tmp_path / "called").exists()


@needs_mininet
def test_a_kernel_without_bridges_is_named(fake: Callable[[str, str], None]) -> None:
    refuse = 'case "$*" in *"type bridge"*) echo "Error: Unknown device type." >&2; exit 2;; esac; exec /sbin/ip "$@"'
    fake("ip", refuse)
    assert choose_backend("auto") == "loopback"
    assert "type bridge" in try_mininet(star(2)).reason and "Unknown device type" in try_mininet(star(2)).reason


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    try_mininet.cache_clear()
    monkeypatch.setattr(probe.shutil, "which", lambda tool, path: None if tool in ("tc", "ip") else f"/bin/{tool}")
    assert try_mininet(star(2)).reason == "ip, tc not found (on Debian: apt-get install iproute2)"
    try_mininet.cache_clear()


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"kernel.unprivileged_userns_clone": "0"}, "kernel.unprivileged_userns_clone=1"),
        (
            {"kernel.apparmor_restrict_unprivileged_userns": "1", "user.max_user_namespaces": "999"},
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({"user.max_user_namespaces": "0"}, "user.max_user_namespaces="),
        ({}, "--privileged"),
    ],
)
def test_what_allows_namespaces_is_named(
    fake: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], remedy: str
) -> None:
    fake("unshare", "echo 'unshare: unshare failed: Operation not permitted' >&2; exit 1")
    monkeypatch.setattr(probe, "_setting", lambda name: settings.get(name, ""))
    assert choose_backend("auto") == "loopback"
    reason = try_mininet(star(2)).reason
    assert "new namespaces are not permitted (unshare failed: Operation not permitted)" in reason and remedy in reason


def test_what_is_lacking_is_said_with_its_cost() -> None:
    whole = {"priority": REALTIME, "sysctl_refused": {}, "keeps_packet_order": True, "qdiscs": ["tbf"]}
    assert shortcomings(Trial(facts=whole)) == []
    poor = {
        "priority": NORMAL,
        "sysctl_refused": {"net.ipv4.tcp_slow_start_after_idle": "1"},
        "keeps_packet_order": False,
    }
    priority, sysctl, order = shortcomings(Trial(facts=whole | poor))
    assert "rtprio" in priority and "degraded" in priority
    assert "net.ipv4.tcp_slow_start_after_idle, which stays 1: messages after an idle time" in sysctl
    assert "rps_default_mask" in order


def test_other_systems_use_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    try_mininet.cache_clear()
    monkeypatch.setattr(probe.sys, "platform", "darwin")
    assert choose_backend("auto") == "loopback"
    try_mininet.cache_clear()


def test_loopback_is_always_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "try_mininet", lambda graph: pytest.fail("not asked"))
    assert choose_backend("loopback") == "loopback"
