"""``network=analytic``: the cost model's rows of a whole grid, in the time that it takes to evaluate formulas.

Nothing is built, sent or measured. ``latency_ms`` is what the methods' formulas say: the slots of their segments and
what their collectives really move. ``paper_latency_ms`` and ``paper_bytes`` are the ASTRA paper's way of counting.
"""

from __future__ import annotations

from typing import Any

from experiments.known import known_columns, predicted_s, resolved, skip_impossible
from experiments.manifest import Manifest, print_settled
from experiments.pace import pace
from experiments.paper_accounting import paper_bits, paper_s
from testbed.clock import Device
from testbed.grid import Point, points
from testbed.records import RunFolder
from testbed.rows import ANALYTIC
from testbed.schema import LatencyConfig

UNMEASURED = "encode_ms wait_ms decode_ms wire_bytes max_abs_err verified free_burst_bytes steal_pct".split()


def run(config: LatencyConfig, folder: RunFolder) -> int:
    """Rows of all points that have none yet, written at once. Returns 0: no formula fails."""
    settled = skip_impossible(config, folder) | folder.settled(config.retry_failed)
    todo = [point for point in points(config) if point.key not in settled]
    print_settled(folder, config, len(todo))
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
    known, device = known_columns(point, config), config.emulated_device()
    latency_s = predicted_s(point, config, device)
    compute_s = point_compute_s(point, config, device)
    return (
        known
        | _paper_columns(point, config, device)
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


def point_compute_s(point: Point, config: LatencyConfig, device: Device) -> float:
    """The model's time where links take none: all slots on the critical path."""
    shape = config.model.shape(point.tokens)
    method = resolved(point, shape, device).load()
    return method.predicted_s(shape, point.devices, device, float("inf"))


def _paper_columns(point: Point, config: LatencyConfig, device: Device) -> dict[str, Any]:
    """Volume and latency as the paper counts them, where it does."""
    shape = config.model.shape(point.tokens)
    method, bits_per_s = resolved(point, shape, device).load(), point.bandwidth_mbps * 1e6
    bits = paper_bits(method, shape, point.devices)
    seconds = paper_s(method, shape, point.devices, device, bits_per_s)
    return {
        "paper_bytes": None if bits is None else round(bits / 8),
        "paper_latency_ms": None if seconds is None else 1e3 * seconds,
    }
