"""Does replay measure what real computation would? The same points in hold, in replay, and from the cost model."""

from __future__ import annotations

from typing import Any

from experiments.latency import run_points
from experiments.points import Bench
from testbed.grid import Point
from testbed.records import RunFolder
from testbed.schema import LatencyConfig


def run(config: LatencyConfig, backend: str, folder: RunFolder) -> int:
    """Rows in compute_mode hold, replay and analytic for each point. Returns the number of points that failed."""
    return run_points(config, backend, folder, lambda devices, assets: ["hold", "replay"], _analytic)


def _analytic(bench: Bench, point: Point) -> list[dict[str, Any]]:
    """The cost model's row: slots of the device and bits over the rate, nothing measured."""
    return [bench.analytic_row(point)]
