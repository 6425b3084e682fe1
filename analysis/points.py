"""Rows in, tables out. Each number is the median over repeats; ``spread`` says how far apart the repeats lay."""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd

from analysis.load import MODES, method_rank, with_labels
from testbed.results.column import FIRST, MEDIAN
from testbed.results.schema import ANALYTIC, BASELINE, LATENCY, SAME_CONDITIONS

PARTS = ("compute_ms", "encode_ms", "wire_ms", "wait_ms", "decode_ms")
SETTINGS = LATENCY.names(lambda column: column.point == FIRST)  # the same for all repeats of a point
MEDIANS = LATENCY.names(lambda column: column.point == MEDIAN)


def points(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per measured point (label, bandwidth_mbps): medians over the repeats with status ok.

    Columns: label, variant, bandwidth_mbps, latency_ms with latency_min, latency_max, spread_pct = (max - min) / median
    (missing for one repeat), repeats, speedup with speedup_min, speedup_max, the parts of the latency in ms,
    straggler_wait_pct, full_precision_pct, verified (every repeat), degraded (any repeat), degraded_repeats,
    speedup_degraded (degraded, or the ``single`` that the speed-up is over is), one (measured, with fewer than two
    repeats or without a warm-up pass), speedup_one (one, or the ``single`` that the speed-up is over is), fidelity_note
    (the first), residual_pct (median), and the settings. A ``single`` without a bandwidth stands at every bandwidth.
    """
    rows = _at_every_bandwidth(with_labels(frame))
    rows = rows[(rows["status"] == "ok") & rows["latency_ms"].notna()]
    named: dict = {name: (name, "first") for name in SETTINGS}
    named |= {name: (name, "median") for name in MEDIANS}
    grouped = rows.groupby(["label", "bandwidth_mbps"], dropna=False)
    table = grouped.agg(
        latency_ms=("latency_ms", "median"),
        latency_min=("latency_ms", "min"),
        latency_max=("latency_ms", "max"),
        repeats=("latency_ms", "size"),
        warm_up=("warm_up", "min"),
        speedup=("speedup", "median"),
        speedup_min=("speedup", "min"),
        speedup_max=("speedup", "max"),
        verified=("verified", lambda values: bool(values.fillna(False).all())),
        degraded=("fidelity", lambda values: bool((values == "degraded").any())),
        degraded_repeats=("fidelity", lambda values: int((values == "degraded").sum())),
        speedup_degraded=("speedup_fidelity", lambda values: bool((values == "degraded").any())),
        fidelity_note=("fidelity_note", lambda notes: next((note for note in notes.fillna("") if note), "")),
        residual_pct=("residual_pct", "median"),
        variant=("variant", "first"),
        **named,
    ).reset_index()
    table = table.astype({"degraded": bool, "speedup_degraded": bool})  # an empty table has no types
    table["speedup_degraded"] |= table["degraded"]
    few = (table["repeats"] < 2) | (table["warm_up"] == 0).fillna(False)  # rows of another version do not say
    table["one"] = ((table["compute_mode"] != ANALYTIC) & few).astype(bool)
    table["speedup_one"] = table["one"] | _of_baseline(table, "one")
    spread = 100 * (table["latency_max"] - table["latency_min"]) / table["latency_ms"]
    table["spread_pct"] = spread.where(table["repeats"] > 1)
    places = {label: place for place, label in enumerate(sorted(set(table["label"]), key=_by_number))}
    ranked = table.assign(
        rank=table["method"].map(method_rank),
        mode=table["compute_mode"].map(MODES.index),
        place=table["label"].map(places),
    )
    ranked = ranked.sort_values(["rank", "groups", "mode", "place", "bandwidth_mbps"])
    return ranked.drop(columns=["rank", "mode", "place"]).reset_index(drop=True)


def _of_baseline(table: pd.DataFrame, column: str) -> pd.Series:
    """A flag of the ``single`` that each point's speed-up is over, bool [n]; False where there is none."""
    single = table[table["method"] == BASELINE].groupby(SAME_CONDITIONS, as_index=False)[[column]].any()
    return table[SAME_CONDITIONS].merge(single, how="left", on=SAME_CONDITIONS)[column].eq(True)


def _by_number(label: str) -> list[str | float]:
    """A label's words and numbers in turn, so that T=256 comes before T=1024."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [float(part) if index % 2 else part for index, part in enumerate(parts)]


def latency_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Median latency in ms: one row per method variant, one column per bandwidth in Mbps."""
    return pivot(points(frame), "latency_ms")


def speedup_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Median speed-up over ``single`` of the same run; missing where the run has no ``single``."""
    return pivot(points(frame), "speedup")


def pivot(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One column of ``points`` as variants x bandwidths, in the order of ``points``."""
    wide = table.pivot(index="label", columns="bandwidth_mbps", values=column)
    return wide.reindex(index=table["label"].drop_duplicates()).sort_index(axis=1)


def unfinished(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows without a result, once for each point: label, bandwidth_mbps, status (failed, skipped), error."""
    rows = with_labels(frame)
    rows = rows[rows["status"] != "ok"]
    columns = ["label", "bandwidth_mbps", "status", "error"]
    return rows[columns].drop_duplicates().reset_index(drop=True)


def mode_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The same point in each compute mode: median latency in ms, and the difference from the first mode in percent.

    Index (label without the mode, bandwidth_mbps); columns e.g. hold, replay, analytic in ms, ``replay vs hold`` in
    percent. The modes stand in the order execute, hold, replay, analytic. Empty if the frame has one mode only. Which
    of these numbers are degraded: ``marked_modes``.
    """
    return _of_modes(frame, "latency_ms", lambda mode, first: 100 * (mode / first - 1))


def marked_modes(frame: pd.DataFrame, flag: str) -> pd.DataFrame:
    """For each number of ``mode_table``, 1 or 0: a flag of ``points``. A difference has the flags of both sides."""
    return _of_modes(frame, flag, lambda mode, first: mode.where(mode > first, first))


def _of_modes(frame: pd.DataFrame, column: str, against: Callable[[pd.Series, pd.Series], pd.Series]) -> pd.DataFrame:
    """A column of ``points`` for each mode, then ``against(mode, first mode)`` for each further mode."""
    present = frame["compute_mode"].unique()
    modes = [mode for mode in MODES if mode and mode in present]
    if len(modes) < 2:
        return pd.DataFrame()
    per_mode = []
    for (
        mode
    ) in modes:  # labeled apart, so that the mode and what goes with it (network, time scale) is not in the label
        table = points(frame[frame["compute_mode"] == mode])
        per_mode.append(table.set_index(["label", "bandwidth_mbps"])[column].astype(float).rename(mode))
    order = pd.concat(per_mode).index.drop_duplicates()
    table = pd.concat(per_mode, axis=1).reindex(order)
    for mode in modes[1:]:
        table[f"{mode} vs {modes[0]}"] = against(table[mode], table[modes[0]])
    return table


def partition_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Heterogeneous devices with partition=equal and partition=speed, side by side.

    One row per (label, bandwidth_mbps) measured with both, label without the partition; the other columns of ``points``
    twice, with _equal and _speed at their end. Empty if the frame has one partition only.
    """
    equal, speed = (frame[frame["partition"] == partition] for partition in ("equal", "speed"))
    if equal.empty or speed.empty:
        return pd.DataFrame()
    return points(equal).merge(points(speed), on=["label", "bandwidth_mbps"], suffixes=("_equal", "_speed"))


def _at_every_bandwidth(rows: pd.DataFrame) -> pd.DataFrame:
    bandwidths = rows["bandwidth_mbps"].dropna().unique()
    lone = (rows["method"] == "single") & rows["bandwidth_mbps"].isna()
    if not lone.any() or not len(bandwidths):
        return rows
    copies = [rows[lone].assign(bandwidth_mbps=bandwidth) for bandwidth in bandwidths]
    return pd.concat([rows[~lone], *copies], ignore_index=True)
