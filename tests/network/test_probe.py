"""What is missing is named with its remedy, and ``auto`` never fails."""

from __future__ import annotations

import pytest

from testbed.errors import EnvironmentFault
from testbed.network import probe


def test_without_root_mininet_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.os, "geteuid", lambda: 1000)
    with pytest.raises(EnvironmentFault, match=r"network=mininet: it needs root .*network=loopback"):
        probe.choose_backend("mininet")
    assert probe.choose_backend("auto") == "loopback"


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.os, "geteuid", lambda: 0)
    monkeypatch.setattr(probe.shutil, "which", lambda tool, path: None if tool == "mnexec" else f"/bin/{tool}")
    monkeypatch.setattr(probe, "kernel_qdiscs", lambda: ("tbf",))
    assert probe.missing_for_mininet() == ["mnexec is missing (apt-get install mininet)"]


def test_a_kernel_that_cannot_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.os, "geteuid", lambda: 0)
    monkeypatch.setattr(probe.shutil, "which", lambda tool, path: f"/bin/{tool}")
    monkeypatch.setattr(probe, "kernel_qdiscs", tuple)
    assert "cannot shape" in probe.missing_for_mininet()[0]


def test_other_systems_use_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.sys, "platform", "darwin")
    assert probe.choose_backend("auto") == "loopback"


def test_loopback_is_always_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "missing_for_mininet", lambda: pytest.fail("not asked"))
    assert probe.choose_backend("loopback") == "loopback"
