"""Latencies as text, for the terminal and tables.md. Each cell shows whether its point is degraded or failed."""

from __future__ import annotations

import pandas as pd

from analysis.describe import MODEL, is_analytic, statistic
from analysis.points import marked_modes, mode_table, points, unfinished
from analysis.text_table import (
    DEGRADED,
    DEGRADED_NOTE,
    ONE,
    ONE_NOTE,
    SPEEDUP_NOTE,
    TextTable,
    mark_notes,
    marked,
    number,
    percent,
    signed_pct,
)

# Mark in a cell -> note below the table.
NOTES = {
    ONE: ONE_NOTE,
    DEGRADED: f"{DEGRADED_NOTE}; the reasons are below",
    "failed": "failed: the point has no result; the errors are below",
    "skipped": "skipped: this point is not possible with this method; the reasons are below",
    "no": "verified no: this run did not compare all outputs with the reference model",
}

SPEEDUP_NOTES = {NOTES[DEGRADED]: f"{SPEEDUP_NOTE}; the reasons are below"}  # what a table of speed-ups says instead


def latency_tables(frame: pd.DataFrame) -> list[TextTable]:
    """Latency and speed-up of each method at each bandwidth.

    Columns: the method variant, one column for each bandwidth in Mbps, the largest spread of a point, the repeats
    (fewest to most) and whether all outputs were verified. If the rows have several compute modes, a table that
    compares them comes first. There is no table of speed-ups where the rows have none.
    """
    measured = points(frame)
    tables = [mode_comparison(frame), _grid(f"Latency (ms, {statistic(frame)})", measured, frame, "latency_ms")]
    if measured["speedup"].notna().any():
        how = f", {MODEL}" if is_analytic(frame) else ""
        tables.append(_grid(f"Speed-up over one device{how}", measured, frame, "speedup", "speedup_"))
    return [table for table in tables if table.rows]


def problem_tables(frame: pd.DataFrame) -> list[TextTable]:
    """Points that are degraded and points without a result, each with its reason; no table without such points."""
    return [table for table in (_degraded(frame), _unfinished(frame)) if table.rows]


def mode_comparison(frame: pd.DataFrame) -> TextTable:
    """The median latency of the same points in each compute mode, in ms; no rows if there is one mode only."""
    table = mode_table(frame)
    marks = ((marked_modes(frame, name) == 1).to_numpy() for name in ("degraded", "one"))
    rows = []
    for (place, values), degraded, one in zip(table.iterrows(), *marks, strict=True):
        label, bandwidth = place  # pyright: ignore[reportGeneralTypeIssues] a tuple, as the index has two levels
        texts = [signed_pct(value) if " vs " in str(name) else number(value) for name, value in values.items()]
        rows.append([str(label), mbps(bandwidth), *map(marked, texts, degraded, one)])
    columns = ["method", "Mbps", *map(str, table.columns)]
    notes = mark_notes(cell for row in rows for cell in row[2:])
    return TextTable("Latency in each compute mode (ms, median over repeats)", columns, rows, notes)


def _grid(title: str, measured: pd.DataFrame, frame: pd.DataFrame, column: str, prefix: str = "") -> TextTable:
    """A table of a column of ``points``. prefix: of the columns ``degraded`` and ``one`` that are about this column."""
    lost = unfinished(frame)
    cells = {_place(row): str(row["status"]) for _, row in lost.iterrows()}
    for _, row in measured.iterrows():  # a point with at least one good repeat has a result
        cells[_place(row)] = marked(number(row[column]), row[f"{prefix}degraded"], row[f"{prefix}one"])
    bandwidths = sorted({bandwidth for _, bandwidth in cells if bandwidth}) or [0.0]
    rows = []
    for label in pd.concat([measured["label"], lost["label"]]).drop_duplicates():
        about = _about(measured[measured["label"] == label])
        rows.append([label, *(cells.get((label, bandwidth), "-") for bandwidth in bandwidths), *about])
    columns = ["method", *(_heading(bandwidth) for bandwidth in bandwidths), "spread", "repeats", "verified"]
    special = SPEEDUP_NOTES if column == "speedup" else {}
    return TextTable(title, columns, rows, [special.get(note, note) for note in _notes(cells, rows)])


def _place(row: pd.Series) -> tuple[str, float]:
    """(label, bandwidth in Mbps) of a cell; bandwidth 0 where the point has none."""
    return str(row["label"]), 0.0 if pd.isna(row["bandwidth_mbps"]) else float(row["bandwidth_mbps"])


def _notes(cells: dict[tuple[str, float], str], rows: list[list[str]]) -> list[str]:
    """Explanations of the marks that this table has, and of no others."""
    used = {text for text in cells.values() if text in NOTES}
    used |= {mark for mark in (ONE, DEGRADED) if any(mark in text for text in cells.values())}
    used |= {"no"} if any(row[-1] == "no" for row in rows) else set()
    return [text for mark, text in NOTES.items() if mark in used]


def _about(rows: pd.DataFrame) -> list[str]:
    """[largest spread, repeats from fewest to most, whether every repeat was verified] of one label's points."""
    if rows.empty:
        return ["-", "0", "-"]
    if is_analytic(rows):
        return ["-", "-", "model"]
    low, high = int(rows["repeats"].min()), int(rows["repeats"].max())
    repeats = f"{low}" if low == high else f"{low}-{high}"
    return [percent(rows["spread_pct"].max()), repeats, "yes" if rows["verified"].all() else "no"]


def _degraded(frame: pd.DataFrame) -> TextTable:
    rows = [
        [
            point["label"],
            mbps(point["bandwidth_mbps"]),
            f"{point['degraded_repeats']} of {point['repeats']}",
            signed_pct(point["residual_pct"]),
            point["fidelity_note"],
        ]
        for _, point in points(frame).query("degraded").iterrows()
    ]
    columns = ["method", "Mbps", "degraded repeats", "from the cost model", "reason (first degraded repeat)"]
    return TextTable("Points with degraded fidelity", columns, rows, left=frozenset({columns[0], columns[-1]}))


def _unfinished(frame: pd.DataFrame) -> TextTable:
    rows = [
        [
            row["label"],
            mbps(row["bandwidth_mbps"]),
            row["status"],
            row["error"],
        ]
        for _, row in unfinished(frame).iterrows()
    ]
    columns = ["method", "Mbps", "status", "error"]
    return TextTable("Points without a result", columns, rows, left=frozenset(columns))


def mbps(bandwidth: float) -> str:
    """``20``; - for a point that has no bandwidth."""
    return "-" if pd.isna(bandwidth) else f"{bandwidth:g}"


def _heading(bandwidth: float) -> str:
    return f"{bandwidth:g} Mbps" if bandwidth else "any bandwidth"
