"""``network=analytic``: the cost model's rows of a whole grid, in the time that it takes to evaluate formulas.

Nothing is built, sent or measured. ``latency_ms`` is what the methods' formulas say: the slots of their segments and
what their collectives really move. ``paper_latency_ms`` and ``paper_bytes`` are the ASTRA paper's way of counting.
"""

from __future__ import annotations

from typing import Any

from experiments.cost_model.paper_accounting import paper_bits, paper_compute_s
from experiments.cost_model.point_costs import known_columns, played, predicted_s, resolved, skip_impossible
from experiments.measurement.manifest import Manifest, print_completed
from experiments.measurement.time_scale import pace
from testbed.comm.wire import Wire
from testbed.config.schema import LatencyConfig
from testbed.grid import Point, points
from testbed.results.run_folder import RunFolder
from testbed.results.schema import ANALYTIC

UNMEASURED = ("encode_ms", "wait_ms", "decode_ms", "straggler_wait_pct", "steal_pct", "wire_bytes", "max_abs_err")
UNMEASURED += ("verified", "burst_credit_bytes")


def run(config: LatencyConfig, folder: RunFolder) -> int:
    """Rows of all points that have none yet, written at once. Returns 0: no formula fails."""
    completed = skip_impossible(config, folder) | folder.completed(config.retry_failed)
    todo = [point for point in points(config) if point.key not in completed]
    print_completed(folder, config, len(todo))
    if todo:
        Manifest(folder, config)
        folder.append([analytic_row(point, config) for point in todo])
        minutes = sum(pace(point, config, "replay").total_s for point in todo) / 60
        print(
            f"{len(todo)} points from the cost model; to measure them in replay, passes alone would take about "
            f"{minutes:.0f} min on this machine, beside starting clusters and verifying each variant"
        )
    return 0


def analytic_row(point: Point, config: LatencyConfig) -> dict[str, Any]:
    """The cost model's row of a point. Nothing of it is measured."""
    known, devices = known_columns(point, config), played(point, config)
    latency_s = predicted_s(point, config, devices)
    compute_s = predicted_s(point, config, devices, Wire(float("inf")))  # all slots on the critical path
    return (
        known
        | _paper_columns(point, config)
        | dict.fromkeys(UNMEASURED)
        | {
            "network": ANALYTIC,
            "compute_mode": ANALYTIC,
            "time_scale": 1.0,
            "latency_ms": 1e3 * latency_s,
            "compute_ms": 1e3 * compute_s,
            "wire_ms": 1e3 * (latency_s - compute_s),
            "payload_bytes": known["formula_bytes"],
            "overruns": 0,
            "fidelity": "ok",
            "fidelity_note": "",
            "residual_pct": 0.0,
            "status": "ok",
            "error": "",
        }
    )


def _paper_columns(point: Point, config: LatencyConfig) -> dict[str, Any]:
    """Volume and latency as the paper counts them, where it does: of equal devices with equal shares."""
    shape, devices, bits = config.model.shape(point.tokens), played(point, config), None
    method = resolved(point, config).load()
    if not point.speeds and len(set(devices)) == 1:
        bits = paper_bits(method, shape, point.devices)
    if bits is None:
        return {"paper_bytes": None, "paper_latency_ms": None}
    compute_s = paper_compute_s(method, shape, devices)
    return {
        "paper_bytes": round(bits / 8),
        "paper_latency_ms": 1e3 * (compute_s + bits / (point.bandwidth_mbps * 1e6)),
    }
