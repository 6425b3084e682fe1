"""Every attempt at a point becomes rows; which one counts is decided where they are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.measurement import cluster_bench
from experiments.measurement.cluster_bench import ClusterBench
from experiments.measurement.time_scale import PassPlan
from testbed.grid import Point
from testbed.results.run_folder import RunFolder
from tests.results.test_run_folder import row

STEAL_PCT = (40.0, 12.0, 25.0)


class Bench(ClusterBench):
    """A bench without a cluster. Each attempt has two repeats, and its number is their latency in ms."""

    def __init__(self) -> None:
        config: Any = SimpleNamespace(point_budget_s=60.0)
        check: Any = SimpleNamespace(ok=True)
        self.config, self.devices, self.verified, self._shown = config, 1, {"variant": check}, {}

    session: Any = SimpleNamespace(shape=lambda rate: None, measure=lambda *_: None, network=None)

    def _plan(self, *_: Any) -> PassPlan:
        return PassPlan(1.0, 2, 1, 0.1, 0.1)

    def _row(self, *_: Any) -> dict[str, Any]:
        return {}

    def _measured(self, *words: Any) -> dict[str, Any]:
        ranks, repeat, steal_pct = words[3], words[4], words[6]
        changed = {"latency_ms": float(ranks[0]), "repeat": repeat, "steal_pct": steal_pct, "compute_mode": "replay"}
        return {name: value for name, value in row(**changed).items() if name != "attempt"}


def test_all_attempts_are_written_and_the_one_with_the_lowest_steal_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = [(steal, [SimpleNamespace(ranks=[number])] * 2) for number, steal in enumerate(STEAL_PCT, 1)]
    monkeypatch.setattr(cluster_bench, "attempts", lambda *_: made)
    check = SimpleNamespace(shown=frozenset())
    monkeypatch.setattr(cluster_bench, "fidelity_checks", lambda passes, *_: [check] * len(passes))
    monkeypatch.setattr(cluster_bench, "sends", lambda _: False)
    monkeypatch.setattr(cluster_bench, "variant", lambda _: "variant")
    monkeypatch.setattr(cluster_bench, "emulated_devices", lambda *_: [])
    point = Point("single", (), 1, 10.0, 49)
    costs: Any = SimpleNamespace(resolved=None, point=point)
    rows = Bench()._measure(costs, "replay")
    assert [(each["attempt"], each["repeat"]) for each in rows] == [(n, r) for n in range(3) for r in range(2)]
    folder = RunFolder(tmp_path, "smoke", "abc")
    assert [each["latency_ms"] for each in folder.append(rows)] == [2.0, 2.0]
    assert folder.rows(every_attempt=True)["latency_ms"].tolist() == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
