"""Devices of unequal speed: equal shares beside shares in proportion to speed."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from analysis.latency import STYLE, condition_caption, save
from analysis.panels import HOLLOW
from analysis.points import points, shares_table
from analysis.text_table import DEGRADED, NOTES, TextTable, number, signed_pct
from testbed.results.schema import BASELINE

# As in the rows -> in words, color, marker.
SHARES = {"equal": ("equal shares", "#E69F00", "o"), "speed": ("shares by speed", "#0072B2", "D")}
# Heading in the table -> the column of ``points`` that it has both values of, and their unit.
COLUMNS = {
    "speed-up": ("speedup", "x"),
    "wait for the slowest": ("straggler_wait_pct", "%"),
    "full precision": ("full_precision_pct", "%"),
}


def unequal_table(frame: pd.DataFrame) -> TextTable:
    """Latency, speed-up, waiting and full precision with both kinds of shares; no rows where there is one kind only."""
    table = shares_table(frame)
    rows = []
    for _, point in table.iterrows():
        degraded = [DEGRADED if point[f"degraded_{shares}"] else "" for shares in SHARES]
        latencies = [point[f"latency_ms_{shares}"] for shares in SHARES]
        rows.append(
            [
                point["label"],
                f"{point['bandwidth_mbps']:g}",
                *(number(latency) + mark for latency, mark in zip(latencies, degraded, strict=True)),
                signed_pct(100 * (latencies[1] / latencies[0] - 1)),
                *(_both(point, column, unit) for column, unit in COLUMNS.values()),
            ]
        )
    columns = ["method", "Mbps", "equal (ms)", "by speed (ms)", "difference", *COLUMNS]
    notes = _notes(frame, rows) if rows else []
    return TextTable("Unequal devices: equal shares, and shares by speed", columns, rows, notes)


def _both(point: pd.Series, column: str, unit: str) -> str:
    """``1.21x, 1.60x``: with equal shares, and by speed; - where the method has no such number."""
    values = [point[f"{column}_{shares}"] for shares in SHARES]
    return "-" if pd.isna(values).all() else ", ".join(number(value, unit) for value in values)


def _notes(frame: pd.DataFrame, rows: list[list[str]]) -> list[str]:
    mixes = ", ".join(sorted(set(frame["device_profile"]) - {""}))
    notes = [
        f"devices, from rank 0 on: {mixes}; two values of a cell: with equal shares, with shares by speed",
        "wait for the slowest: how much longer it computes than the others on average, of the latency",
        "full precision: pairs of a query and a key that are not quantized, of all (ASTRA)",
    ]
    table = points(frame)
    single_ms = table.loc[table["method"] == BASELINE, "latency_ms"].median()
    if not np.isnan(single_ms):
        notes.insert(1, f"speed-up: over the fastest device alone, {number(single_ms)} ms")
    marked = any(DEGRADED in cell for row in rows for cell in row)
    return notes + ([NOTES[DEGRADED]] if marked else [])


def unequal_plot(frame: pd.DataFrame, out_dir: Path, name: str = "unequal") -> list[Path]:
    """Speed-up and waiting with both kinds of shares, at the lowest and the highest bandwidth.

    Returns the files written: none where there are shares of one kind only.
    """
    table = shares_table(frame)
    if table.empty:
        return []
    shown = sorted({table["bandwidth_mbps"].min(), table["bandwidth_mbps"].max()})
    labels = list(dict.fromkeys(table["label"]))
    with plt.style.context(STYLE):
        figure, grid = plt.subplots(
            len(shown),
            2,
            figsize=(9.5, len(shown) * (1.0 + 0.34 * len(labels)) + 0.8),
            sharex="col",
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for (left, right), bandwidth in zip(grid, shown, strict=True):
            here = table[table["bandwidth_mbps"] == bandwidth].set_index("label").reindex(labels)
            _dumbbells(left, here, "speedup")
            _dumbbells(right, here, "straggler_wait_pct")
            left.axvline(1, color="black", linewidth=1.2)
            left.set_xscale("log")
            left.set_title(f"{bandwidth:g} Mbps: speed-up over the fastest device")
            right.set_title("the others wait for the slowest")
        grid[-1][0].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        grid[-1][0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        grid[-1][0].xaxis.set_minor_formatter(NullFormatter())
        grid[-1][1].xaxis.set_major_formatter(PercentFormatter(100, decimals=0))
        grid[-1][1].set_xlim(left=0)
        grid[-1][0].set_xlabel("speed-up (one device: 1)")
        grid[-1][1].set_xlabel("of the latency")
        grid[0][0].invert_yaxis()
        handles = [
            Line2D([], [], color=color, marker=marker, linestyle="", label=words)
            for words, color, marker in SHARES.values()
        ]
        if table[["degraded_equal", "degraded_speed"]].any(axis=None):
            handles.append(Line2D([], [], **HOLLOW, label="hollow: degraded fidelity"))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
        condition_caption(figure, frame, "Medians over repeats.", 120)
        return save(figure, out_dir / name)


def _dumbbells(axes: Axes, table: pd.DataFrame, column: str) -> None:
    """One line for each label (index) from its value with equal shares to that with shares by speed."""
    y = np.arange(len(table))
    ends = [table[f"{column}_{shares}"].to_numpy(float) for shares in SHARES]
    axes.hlines(y, *ends, color="#BBBBBB", linewidth=2, zorder=1)
    for (shares, (_, color, marker)), x in zip(SHARES.items(), ends, strict=True):
        hollow = table[f"degraded_{shares}"].to_numpy() == 1
        faces = np.where(hollow, "white", color)
        axes.scatter(x, y, s=42, marker=marker, c=faces, edgecolors=color, linewidths=1.5, zorder=2)
    axes.set_yticks(y, table.index.tolist())
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
