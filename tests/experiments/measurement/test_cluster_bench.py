"""What a calibration says of points that were measured between it and the one before."""

from __future__ import annotations

import pytest

from experiments.measurement import cluster_bench
from experiments.measurement.calibration import Calibration
from experiments.measurement.cluster_bench import ClusterBench
from testbed.config.load import load_config
from testbed.config.schema import LatencyConfig
from testbed.grid import points

WORDS = ["+experiment=smoke", "network=loopback", "methods=[single,sequence]", "bandwidths=100", "time_scale=1"]
BUSY = "after the last point: other programs keep 99% of the cores busy"
SLOW = "link rate off by -9.0% (try time_scale=4)"


def test_a_calibration_marks_only_points_that_do_not_show_the_same_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config([*WORDS, "compute_mode=replay"])
    assert isinstance(config, LatencyConfig)
    single, sequence = sorted(points(config), key=lambda point: point.method != "single")
    bench = ClusterBench(config, "loopback", 2, {}, [single, sequence], ["replay"])
    monkeypatch.setattr(ClusterBench, "session", None)
    monkeypatch.setattr(cluster_bench, "calibrate", lambda *_: Calibration({100.0: -9.0}, 0.0, 99.0, 0))
    assert bench.recalibrate([single, sequence]) == {
        single: BUSY,
        sequence: f"after the last point: {SLOW}; {BUSY[22:]}",
    }
    calm = frozenset({"foreign_cpu_pct", "throttled_ms"})
    bench._shown = {single: calm, sequence: calm}
    assert bench.recalibrate([single, sequence]) == {sequence: f"after the last point: {SLOW}"}
    bench._shown[sequence] = calm | {"link_rate_error_pct"}
    assert bench.recalibrate([single, sequence]) == {}
