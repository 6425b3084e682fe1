from __future__ import annotations

import pytest

from testbed.cluster import nodes


def test_rays_variables_of_the_user_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.9.8.7:10001")
    monkeypatch.setenv("RAY_NAMESPACE", "somebody")
    monkeypatch.setenv("OTHER", "kept")
    monkeypatch.setattr(nodes, "scratch", lambda: "scratch")
    nodes.users_ray_variables.cache_clear()
    try:
        environment = nodes.ray_environment(threads=2, loopback=True)
    finally:
        nodes.users_ray_variables.cache_clear()
    assert "RAY_ADDRESS" not in environment and "RAY_NAMESPACE" not in environment
    assert environment["OTHER"] == "kept" and environment["RAY_AUTH_MODE"] == "token"
