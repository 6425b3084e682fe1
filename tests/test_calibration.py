"""Calibration: what counts as a breach, and what becomes of rows that were measured before it was found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import calibration
from experiments.calibration import Calibration, calibrate, calmest
from testbed.records import RunFolder
from testbed.rows import LATENCY
from tests.analysis import synthetic


class FakeNetwork:
    """Counts what the links delivered."""

    def __init__(self) -> None:
        self.bytes = 0

    def delivered_bytes(self) -> list[float]:
        return [float(self.bytes)] * 2


class FakeSession:
    """Two devices whose links run at ``share`` of the rate that was asked for."""

    devices, time_scale = 2, 4.0  # calibration is of this machine, at its own pace

    def __init__(self, share: float, foreign: int = 0):
        self.share, self.foreign = share, foreign
        self.network = FakeNetwork()
        self.rate = 0.0

    def shape(self, bandwidth: float) -> None:
        self.rate = bandwidth * 1e6 / self.time_scale

    def idle_bytes(self) -> int:
        return self.foreign

    def rank_times(self, _operation: str, size: int, repeats: int) -> list[list[tuple[float, float]]]:
        self.network.bytes += size * repeats
        return [[(10.0, 10.0 + 8 * size / (self.share * self.rate))] * repeats] * 2

    def collective(self, _operation: str, _size: int, repeats: int) -> list[float]:
        return [0.002] * repeats


def test_rates_are_measured_at_each_bandwidth() -> None:
    found = calibrate(FakeSession(share=0.95), [100, 10])  # pyright: ignore[reportArgumentType]
    assert found.rate_error_pct == {10: pytest.approx(-5), 100: pytest.approx(-5)}
    assert 0.0019 < found.message_overhead_s < 0.002


@pytest.mark.parametrize(
    ("stolen", "kept", "attempts"),
    [([0.0], 0, 1), ([4.9], 0, 1), ([30.0, 2.0], 1, 2), ([30.0, 9.0, 20.0], 1, 3)],
)
def test_a_point_is_measured_again_while_the_host_takes_time_away(
    monkeypatch: pytest.MonkeyPatch, stolen: list[float], kept: int, attempts: int
) -> None:
    readings = iter([reading for share in stolen for reading in (99.0, share)])  # before and after each attempt
    monkeypatch.setattr(
        calibration.psutil, "cpu_times_percent", lambda: SimpleNamespace(idle=1.0, steal=next(readings))
    )
    made: list[int] = []

    def measure() -> int:
        made.append(len(made))
        return made[-1]

    assert calmest(measure, budget_s=60) == (stolen[kept], kept)
    assert len(made) == attempts


def test_no_attempt_begins_after_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration.psutil, "cpu_times_percent", lambda: SimpleNamespace(steal=50.0))
    assert calmest(lambda: "once", budget_s=0) == (50.0, "once")
    monkeypatch.setattr(calibration.psutil, "cpu_times_percent", lambda: SimpleNamespace(idle=3.0))
    assert calmest(lambda: "nobody tells", budget_s=60) == (0.0, "nobody tells")


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
