"""Made-up rows in the testbed's columns, with round numbers. Nothing here was measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from testbed.results.schema import LATENCY

BANDWIDTHS = (10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
SINGLE_MS = 350.0
COMPUTE_MS = {"single": 350.0, "tensor": 88.0, "sequence": 123.0, "pipeline": 350.0, "astra": 123.0}
MBIT = {"single": 0.0, "tensor": 905.97, "sequence": 226.49, "pipeline": 75.5, "astra": 0.0922}  # astra: for each group
VARIANTS = (("single", 0), ("tensor", 0), ("sequence", 0), ("pipeline", 0), ("astra", 1), ("astra", 16), ("astra", 32))


def row(method: str = "astra", groups: int = 0, **changes: Any) -> dict[str, Any]:
    """One good row; ``changes`` replace any column."""
    bandwidth = changes.get("bandwidth_mbps", 10.0)
    wire = 1000 * MBIT[method] * max(groups, 1) / bandwidth if bandwidth else 0.0
    encode = 2.5 + 0.1 * groups if method == "astra" else 0.0
    parts = {
        "compute_ms": COMPUTE_MS[method],
        "encode_ms": encode,
        "wire_ms": wire,
        "wait_ms": 2.0,
        "decode_ms": encode / 2,
    }
    latency = sum(parts.values())
    values = {
        "experiment": "bandwidth_sweep",
        "signature": "0123456789",
        "method": method,
        "codec": "fp32",
        "groups": groups,
        "codebook_size": 1024 if method == "astra" else 0,
        "optimizations": "paper" if method == "astra" else "",
        "optimizations_resolved": "paper" if method == "astra" else "",
        "settings": "",
        "devices": 1 if method == "single" else 4,
        "partition": "equal",
        "bandwidth_mbps": bandwidth,
        "delay_ms": 0.0,
        "loss_pct": 0.0,
        "tokens": 1024,
        "layers": 12,
        "hidden": 768,
        "heads": 12,
        "model": "vit_base",
        "topology": "star",
        "all_gather": "pairwise",
        "queue_kb": 1000.0,
        "network": "mininet",
        "device_profile": "gtx1660ti",
        "compute_mode": "replay",
        "time_scale": 1.0,
        "repeat": 0,
        "warm_up": 1,
        "latency_ms": latency,
        **parts,
        "made_up_ms": 3.0,
        "exchange_late_ms": 0.5,
        "straggler_wait_pct": None if method == "single" else 0.0,
        "full_precision_pct": 25.0 if method == "astra" else None,
        "speedup": SINGLE_MS / latency,
        "payload_bytes": round(MBIT[method] * 1e6 / 8),
        "formula_bytes": round(MBIT[method] * 1e6 / 8),
        "messages": 12,
        "paper_bytes": None,
        "paper_latency_ms": None,
        "wire_bytes": round(MBIT[method] * 1.04e6 / 8),
        "burst_credit_bytes": 0,
        "wire_floor_ms": wire,
        "verified": True,
        "max_abs_err": 1e-6,
        "allowed_abs_err": 4e-6,
        "overruns": 0,
        "foreign_cpu_pct": 0.5,
        "throttled_ms": 0.0,
        "foreign_bytes": 0,
        "link_rate_error_pct": -0.5 if wire > 100 else None,
        "link_burst_bytes": 0 if method == "single" else 6000,
        "retransmits": 0,
        "out_of_order": 0,
        "fidelity": "ok",
        "fidelity_note": "",
        "steal_pct": 0.4,
        "residual_pct": 2.0,
        "status": "ok",
        "error": "",
    }
    return values | changes


def frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows with the dtypes that the testbed writes."""
    return pd.DataFrame(list(rows), columns=list(LATENCY.columns)).astype(dict(LATENCY.columns))


def failed(method: str, groups: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of a point that failed before anything was measured."""
    keep = LATENCY.keys
    known = {name: value for name, value in row(method, groups, **changes).items() if name in keep}
    return (
        dict.fromkeys(LATENCY.columns)
        | known
        | {"status": "failed", "error": "all_gather: rank 2 is missing after 30 s"}
        | changes
    )


def sweep(bandwidths: Iterable[float] = BANDWIDTHS, repeats: int = 3, **changes: Any) -> pd.DataFrame:
    """Every method at every bandwidth; repeats 0, 1, 2 are 0, 2 and 4 percent slower than the first."""
    rows = []
    for bandwidth in bandwidths:
        for method, groups in VARIANTS:
            for repeat in range(repeats):
                made = row(method, groups, bandwidth_mbps=bandwidth, repeat=repeat, **changes)
                made["latency_ms"] *= 1 + 0.02 * repeat
                made["speedup"] /= 1 + 0.02 * repeat
                rows.append(made)
    return frame(rows)


def clock_check() -> pd.DataFrame:
    """The same points held, replayed and from the cost model; replay is 1% faster, the model 5%."""
    modes = {"hold": ("loopback", 8.0, 1.0), "replay": ("loopback", 8.0, 0.99), "analytic": ("analytic", 1.0, 0.95)}
    rows = []
    for mode, (network, scale, factor) in modes.items():
        for bandwidth in (20.0, 100.0):
            for method, groups in VARIANTS[:5]:
                made = row(
                    method, groups, bandwidth_mbps=bandwidth, compute_mode=mode, network=network, time_scale=scale
                )
                made |= {"latency_ms": factor * made["latency_ms"], "experiment": "clock_check"}
                rows.append(made | {"verified": None} if mode == "analytic" else made)
    return frame(rows)
