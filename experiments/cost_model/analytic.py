"""Rows of the cost model (``network=analytic``). Nothing is run, sent or measured.

``latency_ms`` adds up the emulated compute time of segments and the bytes that collectives move, over the rate of the
links. ``paper_latency_ms`` and ``paper_bytes`` follow the ASTRA paper's cost model.
"""

from __future__ import annotations

from typing import Any

from experiments.cost_model.paper_accounting import paper_bits, paper_compute_s
from experiments.cost_model.point_costs import PointCosts
from testbed.comm.wire import Wire
from testbed.results.schema import ANALYTIC


def analytic_row(costs: PointCosts) -> dict[str, Any]:
    """The cost model's row of a point: column -> value."""
    latency_s = costs.predicted_s()
    compute_s = costs.predicted_s(wire=Wire(float("inf")))  # the part of the critical path that is computation
    return (
        costs.columns
        | _paper_columns(costs)
        | {
            "network": ANALYTIC,
            "compute_mode": ANALYTIC,
            "time_scale": 1.0,
            "latency_ms": 1e3 * latency_s,
            "compute_ms": 1e3 * compute_s,
            "wire_ms": 1e3 * (latency_s - compute_s),
            "payload_bytes": costs.columns["formula_bytes"],
            "overruns": 0,
            "fidelity": "ok",
            "fidelity_note": "",
            "residual_pct": 0.0,
            "status": "ok",
            "error": "",
        }
    )


def _paper_columns(costs: PointCosts) -> dict[str, Any]:
    """Bytes and latency by the paper's cost model. It covers equal devices with an equal partition only."""
    bits = None
    if not costs.point.speeds and len(set(costs.devices)) == 1:
        bits = paper_bits(costs.method, costs.shape, costs.point.devices)
    if bits is None:
        return {"paper_bytes": None, "paper_latency_ms": None}
    compute_s = paper_compute_s(costs.method, costs.shape, costs.devices)
    return {
        "paper_bytes": round(bits / 8),
        "paper_latency_ms": 1e3 * (compute_s + bits / (costs.point.bandwidth_mbps * 1e6)),
    }
