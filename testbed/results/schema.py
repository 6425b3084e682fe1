"""What rows on disk look like: for each kind of experiment its columns, what tells points apart, what is derived.

One row per (point, repeat). The only module of the testbed that the analysis imports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

BASELINE = "single"  # the method that speed-up is against; it runs on one device whatever ``devices`` is

STAMPED = ("experiment", "signature")  # filled in by the folder that rows are added to
_TEXT, _COUNT, _NUMBER, _FLAG = "string", "Int64", "Float64", "boolean"  # pandas types with missing values
ANALYTIC = "analytic"  # network and compute mode of rows that the cost model made; nothing of them was measured
STEAL_LIMIT_PCT = 5.0  # of the cores' time, which the host of a virtual machine took away: up to this it is calm
SAME_CONDITIONS = ["bandwidth_mbps", "tokens", "compute_mode"]  # of the two sides of a speed-up


@dataclass(frozen=True, eq=False)  # each is itself, and so a key
class RowSchema:
    """The rows of one kind of experiment.

    columns: name -> pandas type with missing values. keys: the columns that identify a point within a run.
    derive: fills in what follows from other rows (``derived``: those columns), whenever rows are added.
    """

    columns: Mapping[str, str]
    keys: tuple[str, ...]
    derived: tuple[str, ...] = ()
    derive: Callable[[DataFrame], DataFrame] = lambda frame: frame

    def key(self, row: Mapping[Any, Any]) -> tuple[Any, ...]:
        """What identifies the row's point."""
        return tuple(row[column] for column in self.keys)

    def check(self, row: Mapping[str, Any]) -> None:
        """ValueError unless a row has all columns that a runner fills; one that is not ok needs keys and error only."""
        filled = set(self.columns) - {*STAMPED, *self.derived}
        needed = filled if row.get("status") == "ok" else {*self.keys, "status", "error"}
        if wrong := (needed - set(row)) | (set(row) - filled):
            raise ValueError(f"row of {self.key(row)}: columns missing or unknown: {sorted(wrong)}")


def with_speedup(frame: DataFrame) -> DataFrame:
    """The rows with ``speedup``: the baseline's median latency under SAME_CONDITIONS, divided by the row's latency."""
    ok = frame["status"] == "ok"
    baseline = frame.loc[ok & (frame["method"] == BASELINE)].groupby(SAME_CONDITIONS)[["latency_ms"]].median()
    of_row = frame.loc[:, SAME_CONDITIONS].merge(baseline, how="left", left_on=SAME_CONDITIONS, right_index=True)
    speedup = (of_row["latency_ms"] / frame["latency_ms"]).where(ok)
    return frame.assign(speedup=speedup.astype("Float64"))


LATENCY = RowSchema(
    {
        "experiment": _TEXT,
        "signature": _TEXT,
        "method": _TEXT,
        "codec": _TEXT,
        "groups": _COUNT,
        "codebook_size": _COUNT,
        "optimizations": _TEXT,
        "settings": _TEXT,
        "devices": _COUNT,
        "partition": _TEXT,
        "bandwidth_mbps": _NUMBER,
        "delay_ms": _NUMBER,
        "loss_pct": _NUMBER,
        "tokens": _COUNT,
        "layers": _COUNT,
        "hidden": _COUNT,
        "heads": _COUNT,
        "model": _TEXT,
        "topology": _TEXT,
        "all_gather": _TEXT,
        "queue_kb": _NUMBER,
        "network": _TEXT,
        "device_profile": _TEXT,
        "compute_mode": _TEXT,
        "time_scale": _NUMBER,
        "optimizations_resolved": _TEXT,
        "full_precision_pct": _NUMBER,
        "repeat": _COUNT,
        "latency_ms": _NUMBER,
        "compute_ms": _NUMBER,
        "encode_ms": _NUMBER,
        "wire_ms": _NUMBER,
        "wait_ms": _NUMBER,
        "decode_ms": _NUMBER,
        "straggler_wait_pct": _NUMBER,
        "speedup": _NUMBER,
        "payload_bytes": _COUNT,
        "formula_bytes": _COUNT,
        "messages": _COUNT,
        "wire_bytes": _COUNT,
        "wire_floor_ms": _NUMBER,
        "burst_credit_bytes": _COUNT,
        "paper_bytes": _COUNT,
        "paper_latency_ms": _NUMBER,
        "verified": _FLAG,
        "max_abs_err": _NUMBER,
        "overruns": _COUNT,
        "steal_pct": _NUMBER,
        "fidelity": _TEXT,
        "fidelity_note": _TEXT,
        "residual_pct": _NUMBER,
        "status": _TEXT,
        "error": _TEXT,
    },
    (
        *("method", "groups", "codebook_size", "optimizations", "codec", "settings", "devices", "partition"),
        *("bandwidth_mbps", "tokens"),
    ),
    ("speedup",),
    with_speedup,
)
FIDELITY = RowSchema(
    {
        "experiment": _TEXT,
        "signature": _TEXT,
        "pattern": _TEXT,
        "shaper": _TEXT,
        "devices": _COUNT,
        "rate_mbps": _NUMBER,
        "size_bytes": _COUNT,
        "queue_kb": _NUMBER,
        "topology": _TEXT,
        "all_gather": _TEXT,
        "network": _TEXT,
        "time_scale": _NUMBER,
        "repeat": _COUNT,
        "time_ms": _NUMBER,
        "ideal_ms": _NUMBER,
        "payload_ms": _NUMBER,
        "rate_error_pct": _NUMBER,
        "wire_bytes": _COUNT,
        "retransmits": _COUNT,
        "drops": _COUNT,
        "burst_credit_bytes": _COUNT,
        "needed_time_scale": _NUMBER,
        "steal_pct": _NUMBER,
        "fidelity": _TEXT,
        "fidelity_note": _TEXT,
        "status": _TEXT,
        "error": _TEXT,
    },
    ("pattern", "shaper", "devices", "rate_mbps", "size_bytes", "queue_kb"),
)
ACCURACY = RowSchema(
    {
        "experiment": _TEXT,
        "signature": _TEXT,
        "model": _TEXT,
        "data": _TEXT,
        "corpus": _TEXT,
        "tokens": _COUNT,
        "metric": _TEXT,
        "stage": _TEXT,
        "groups": _COUNT,
        "codebook_size": _COUNT,
        "num_quantizers": _COUNT,
        "pre_rotation": _TEXT,
        "quantized": _TEXT,
        "anchor_tokens": _COUNT,
        "int8_tokens": _COUNT,
        "bits_per_token": _NUMBER,
        "compression": _NUMBER,
        "noise": _NUMBER,
        "commitment": _NUMBER,
        "gradient": _TEXT,
        "class_tokens": _TEXT,
        "objective": _TEXT,
        "trained_on": _TEXT,
        "devices": _COUNT,
        "seed": _COUNT,
        "examples": _COUNT,
        "value": _NUMBER,
        "value_low": _NUMBER,
        "value_high": _NUMBER,
        "change": _NUMBER,
        "change_low": _NUMBER,
        "change_high": _NUMBER,
        "train_s": _NUMBER,
        "train_examples": _COUNT,
        "train_device": _TEXT,
        "status": _TEXT,
        "error": _TEXT,
    },
    (
        *(
            "stage",
            "groups",
            "codebook_size",
            "num_quantizers",
            "pre_rotation",
            "quantized",
            "anchor_tokens",
            "int8_tokens",
        ),
        *("noise", "commitment", "gradient", "class_tokens", "objective", "trained_on", "devices", "corpus", "seed"),
    ),
)
SCHEMAS = (LATENCY, FIDELITY, ACCURACY)
