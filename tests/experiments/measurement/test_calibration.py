"""Calibration: what counts as a breach, and what becomes of rows that were measured before it was found."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.measurement import calibration
from experiments.measurement.calibration import Calibration, attempts, calibrate, lowest_steal
from testbed.comm.schedule import HIERARCHICAL
from testbed.results.run_folder import RunFolder
from testbed.results.schema import LATENCY
from tests.analysis import synthetic
from topologies.link_graph import Hop, link_graph


class FakeNetwork:
    """Counts what the links carried."""

    def __init__(self) -> None:
        self.bytes: Counter[Hop] = Counter()

    def carried_bytes(self) -> Counter[Hop]:
        return self.bytes.copy()


class FakeSession:
    """Four devices in two subnets; device 1's link, or the trunk, runs at ``share`` of the rate that was asked for."""

    devices, time_scale, all_gather = 4, 4.0, HIERARCHICAL  # calibration is of this machine, at its own pace
    graph = link_graph(("h1/2 d0", "h2/2 d1", "d0 d1"), 0.25, 4)

    def __init__(self, share: float, slow: Hop, foreign: int = 0):
        self.share, self.slow, self.foreign = share, slow, foreign
        self.network = FakeNetwork()
        self.rate = 0.0

    def shape(self, bandwidth: float) -> None:
        self.rate = bandwidth * 1e6 / self.time_scale

    def idle_bytes(self) -> int:
        return self.foreign

    def rank_times(
        self, operation: str, size: int, repeats: int, peers: list[list[int]] | None = None
    ) -> list[list[tuple[float, float]]]:
        stages = self.graph.gather_loads(self.all_gather, size)
        if peers is not None:
            assert operation == "exchange"
            stages = [[(rank, peer, float(size)) for rank, of in enumerate(peers) for peer in of]]
        for stage in stages:
            for rank, peer, sent in stage:
                self.network.bytes.update({hop: round(sent) * repeats for hop in self.graph.routes[rank, peer]})
        busy_s = self.graph.busy_s([load for stage in stages for load in stage], self.rate)
        busy_s[self.slow] /= self.share
        return [[(10.0, 10.0 + max(busy_s.values()))] * repeats] * self.devices

    def collective_s(self, _operation: str, _size: int, repeats: int) -> list[float]:
        return [0.004] * repeats


@pytest.mark.parametrize("slow", [("d0", "d1"), ("h1", "d0"), ("d1", "h2")])
def test_rates_of_all_links_are_measured_at_each_bandwidth(slow: Hop) -> None:
    session = FakeSession(0.95, slow)
    found = calibrate(session, [100, 10])  # pyright: ignore[reportArgumentType]
    assert session.time_scale == 4.0  # what is measured next runs as it did
    assert found.rate_error_pct == {10: pytest.approx(-5, abs=0.1), 100: pytest.approx(-5, abs=0.1)}
    # 4 ms, but what the bits of 320 B need at 100 Mbps is not overhead.
    assert 0.0036 < found.message_overhead_s < 0.004


@pytest.mark.parametrize(
    ("steal", "kept", "count"),
    [([0.0], 0, 1), ([4.9], 0, 1), ([30.0, 2.0], 1, 2), ([30.0, 9.0, 20.0], 1, 3)],
)
def test_a_point_is_measured_again_while_the_host_takes_time_away(
    monkeypatch: pytest.MonkeyPatch, steal: list[float], kept: int, count: int
) -> None:
    readings = itertools.cycle([reading for share in steal for reading in (99.0, share)])  # before and after each
    monkeypatch.setattr(
        calibration.psutil, "cpu_times_percent", lambda: SimpleNamespace(idle=1.0, steal=next(readings))
    )
    made: list[int] = []

    def measure() -> int:
        made.append(len(made))
        return made[-1]

    assert attempts(measure, budget_s=60) == list(zip(steal, range(count), strict=True))  # all of them
    made.clear()
    assert lowest_steal(measure, budget_s=60) == (steal[kept], kept)


def test_no_attempt_begins_after_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration.psutil, "cpu_times_percent", lambda: SimpleNamespace(steal=50.0))
    assert lowest_steal(lambda: "once", budget_s=0) == (50.0, "once")
    monkeypatch.setattr(calibration.psutil, "cpu_times_percent", lambda: SimpleNamespace(idle=3.0))
    assert lowest_steal(lambda: "nobody tells", budget_s=60) == (0.0, "nobody tells")


def test_what_is_wrong_is_named_with_its_size() -> None:
    good = Calibration({10.0: -1.0, 500.0: -8.0}, 0.0, busy_pct=3.0, idle_bytes=0)
    assert good.breaches(10.0) == [] and good.breaches(500.0) == ["link rate off by -8.0% (try time_scale=4)"]
    assert good.breaches(500.0, time_scale=0.5) == ["link rate off by -8.0% (try time_scale=2)"]
    assert good.breaches(None) == []  # a point that sends nothing
    bad = Calibration({10.0: 0.0}, 0.0, busy_pct=99.0, idle_bytes=70)
    assert bad.breaches(10.0) == [
        "other programs keep 99% of the cores busy",
        "70 foreign bytes on the data network",
    ]


def test_a_calibration_is_no_evidence_of_what_the_passes_show_themselves() -> None:
    bad = Calibration({10.0: -8.0}, 0.0, busy_pct=99.0, idle_bytes=70)
    rate, busy, foreign = bad.breaches(10.0)
    assert bad.breaches(10.0, shown={"link_rate_error_pct"}) == [busy, foreign]
    assert bad.breaches(10.0, shown={"foreign_cpu_pct", "foreign_bytes"}) == [rate]


def test_a_breach_found_afterwards_marks_the_points_rows_and_no_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "sweep", "abc")
    made = [synthetic.row(groups=1, bandwidth_mbps=10.0), synthetic.row(groups=1, bandwidth_mbps=500.0)]
    made[1]["fidelity_note"] = "slots ended late"
    for row in made:
        folder.append([{key: value for key, value in row.items() if key not in ("experiment", "signature", "speedup")}])
    folder.degrade({LATENCY.key(made[1]): "link rate off by -8.0%"})
    rows = folder.rows()
    assert list(rows["fidelity"]) == ["ok", "degraded"]
    assert list(rows["fidelity_note"]) == ["", "slots ended late; link rate off by -8.0%"]
