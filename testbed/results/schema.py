"""The schema of result rows: for each kind of experiment its columns, its keys and its derived columns.

There is one row for each point and repeat. Columns are declared in latency_columns.py, link_columns.py,
accuracy_columns.py and segment_columns.py. docs/columns.md is generated from them. Of the testbed, the analysis
imports only this package and ``testbed.errors``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from testbed.errors import TestbedError
from testbed.results import accuracy_columns, latency_columns, link_columns, segment_columns
from testbed.results.attempts import kept
from testbed.results.column import ANALYTIC_ONLY, MEASURED, STAMPED, Column

if TYPE_CHECKING:
    from pandas import DataFrame

BASELINE = "single"  # the method that speed-ups compare with; it runs on one device for every value of ``devices``
ANALYTIC = "analytic"  # network and compute mode in rows of the cost model, of which nothing is measured
# Both latencies of a speed-up agree in these columns.
SAME_CONDITIONS = ["bandwidth_mbps", "tokens", "compute_mode", "network"]


@dataclass(frozen=True, eq=False)  # compared by identity, so that a schema can be a key of a dict
class RowSchema:
    """The rows of one kind of experiment.

    described: the columns, in the order of the files. measured: the column that an experiment is about. derived: names
    of columns that follow from other rows. derive: computes them; it is called whenever rows are added or degraded.
    """

    described: tuple[Column, ...]
    measured: str
    derived: tuple[str, ...] = ()
    derive: Callable[[DataFrame], DataFrame] = field(default=lambda frame: frame)

    @cached_property
    def columns(self) -> dict[str, str]:
        """Name of each column -> its pandas type with missing values."""
        return {column.name: column.kind for column in self.described}

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Names of the columns that identify a point within a run."""
        return self.names(lambda column: column.key)

    @cached_property
    def only_choices(self) -> dict[str, Any]:
        """Name of a column that older rows may lack -> its value in those rows."""
        return {column.name: column.only_choice for column in self.described if column.only_choice is not None}

    def names(self, test: Callable[[Column], bool]) -> tuple[str, ...]:
        """Names of the columns that pass a test."""
        return tuple(column.name for column in self.described if test(column))

    def key(self, row: Mapping[Any, Any]) -> tuple[Any, ...]:
        """The values of the key columns of a row. They identify its point."""
        return tuple(row[column] for column in self.keys)

    def check(self, row: Mapping[str, Any]) -> None:
        """Raise ValueError for unknown or missing columns, and TestbedError for numbers that cannot be.

        A row with status ok needs all columns that rows of its kind fill. Other rows need the keys, status and error.
        In a row with status ok, a number is missing (None) or within the limits of its column, and what was measured is
        not missing.
        """
        filled = set(self.columns) - {column.name for column in STAMPED} - set(self.derived)
        needed = {*self.keys, "status", "error"}
        if row.get("status") == "ok":
            empty = MEASURED if row.get("compute_mode") == ANALYTIC else ANALYTIC_ONLY
            needed = filled - set(self.names(lambda column: column.filled == empty))
        if wrong := (needed - set(row)) | (set(row) - filled):
            raise ValueError(f"row of {self.key(row)}: columns missing or unknown: {sorted(wrong)}")
        if row["status"] != "ok":
            return
        for column in self.described:
            value, (least, most) = row.get(column.name), column.limits
            if not column.is_number or (value is None and column.name != self.measured):
                continue
            if value is None or not (math.isfinite(value) and least <= value <= most):
                point = ", ".join(str(part) for part in self.key(row) if part not in (None, ""))
                allowed = f"{least:g} to {most:g}" if column.bounded else "any finite number"
                raise TestbedError(f"result of {point}: {column.name}={value}; allowed: {allowed}; it is not written")


def with_speedup(frame: DataFrame) -> DataFrame:
    """The rows with the columns ``speedup`` and ``speedup_fidelity``; missing where the baseline has no result.

    speedup: median latency of the baseline in SAME_CONDITIONS over the row's latency. A ratio is as good as the worse
    of its two sides: it is degraded if the row is, or any row of the baseline that it is compared with. Attempts that
    are not kept take no part, and have no speed-up.
    """
    ok, degraded = (frame["status"] == "ok") & kept(frame), frame["fidelity"] == "degraded"
    rows = frame[[*SAME_CONDITIONS, "latency_ms"]].assign(degraded=degraded.fillna(False).astype(bool))
    baseline = rows[ok & (frame["method"] == BASELINE)].groupby(SAME_CONDITIONS)
    baseline = baseline.agg(baseline_ms=("latency_ms", "median"), baseline_degraded=("degraded", "max"))
    rows = rows.merge(baseline, how="left", left_on=SAME_CONDITIONS, right_index=True)
    speedup = (rows["baseline_ms"] / rows["latency_ms"]).where(ok)
    worse = rows["degraded"] | (rows["baseline_degraded"] == True)  # noqa: E712 missing where there is no baseline
    fidelity = worse.map({True: "degraded", False: "ok"}).where(speedup.notna())
    return frame.assign(speedup=speedup.astype("Float64"), speedup_fidelity=fidelity.astype("string"))


LATENCY = RowSchema(latency_columns.COLUMNS, "latency_ms", ("speedup", "speedup_fidelity"), with_speedup)
FIDELITY = RowSchema(link_columns.COLUMNS, "time_ms")
ACCURACY = RowSchema(accuracy_columns.COLUMNS, "value")
SEGMENT = RowSchema(segment_columns.COLUMNS, "measured_us")
SCHEMAS = (LATENCY, FIDELITY, ACCURACY, SEGMENT)
