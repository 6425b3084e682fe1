"""Comparison of replay with real computation: the same points in hold, in replay, and from the cost model."""

from __future__ import annotations

from experiments.cost_model.analytic import analytic_row
from experiments.latency import run_points
from testbed.config.schema import LatencyConfig
from testbed.results.run_folder import RunFolder


def run(config: LatencyConfig, backend: str, folder: RunFolder) -> int:
    """Rows in compute_mode hold, replay and analytic for each point. Returns the number of points that failed."""
    return run_points(config, backend, folder, lambda *_: ["hold", "replay"], lambda costs: [analytic_row(costs)])
