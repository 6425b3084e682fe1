"""Heterogeneous devices: an equal partition of the work beside a partition in proportion to speed."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from analysis.panels import HOLLOW, STYLE, condition_caption, save
from analysis.points import partition_table, points
from analysis.text_table import SPEEDUP_NOTE, TextTable, mark_notes, marked, number, signed_pct
from testbed.results.schema import BASELINE

# Value of the column ``partition`` -> in words, color, marker.
PARTITIONS = {"equal": ("equal partition", "#E69F00", "o"), "speed": ("partition by speed", "#0072B2", "D")}
# Heading in the table -> the column of ``points`` that the cells show for both partitions, its unit, and the columns
# that say whether the number is degraded and rests on one repeat (none: it is no measurement).
COLUMNS = {
    "speed-up": ("speedup", "x", ("speedup_degraded", "speedup_one")),
    "straggler wait": ("straggler_wait_pct", "%", ("degraded", "one")),
    "full precision": ("full_precision_pct", "%", ()),
}


def heterogeneous_table(frame: pd.DataFrame) -> TextTable:
    """Each point with both partitions side by side; no rows if the frame has one partition only.

    Columns: method variant, Mbps, latency in ms with the equal partition and with the partition by speed, difference in
    percent, then speed-up, straggler wait in percent of the latency and full-precision pairs in percent, as two values
    in one cell.
    """
    table = partition_table(frame)
    rows = []
    for _, point in table.iterrows():
        flags = ("degraded", "one")
        degraded, one = ([bool(point[f"{flag}_{partition}"]) for partition in PARTITIONS] for flag in flags)
        latencies = [point[f"latency_ms_{partition}"] for partition in PARTITIONS]
        rows.append(
            [
                point["label"],
                f"{point['bandwidth_mbps']:g}",
                *map(marked, map(number, latencies), degraded, one),
                marked(signed_pct(100 * (latencies[1] / latencies[0] - 1)), any(degraded), any(one)),
                *(_both(point, *column) for column in COLUMNS.values()),
            ]
        )
    columns = ["method", "Mbps", "equal (ms)", "by speed (ms)", "difference", *COLUMNS]
    notes = _notes(frame, rows) if rows else []
    return TextTable("Heterogeneous devices: equal partition and partition by speed", columns, rows, notes)


def _both(point: pd.Series, column: str, unit: str, flags: tuple[str, ...]) -> str:
    """``1.21x, 1.60x~``: equal partition, then partition by speed; - if the method has no such value."""
    values = [point[f"{column}_{partition}"] for partition in PARTITIONS]
    marks = [[bool(point[f"{flag}_{partition}"]) for flag in flags] or [False] for partition in PARTITIONS]
    texts = (marked(number(value, unit), *of) for value, of in zip(values, marks, strict=True))
    return "-" if pd.isna(values).all() else ", ".join(texts)


def _notes(frame: pd.DataFrame, rows: list[list[str]]) -> list[str]:
    mixes = ", ".join(sorted(set(frame["device_profile"]) - {""}))
    notes = [
        f"device profiles of the ranks, from rank 0 on: {mixes}",
        "two values in a cell: equal partition, then partition by speed",
        "straggler wait: how much longer the slowest device computes than the others on average, in percent of the "
        "latency",
        "full precision: pairs of a query and a key that are not quantized, in percent of all pairs (ASTRA)",
    ]
    table = points(frame)
    single = table[table["method"] == BASELINE]
    single_ms = single["latency_ms"].median()
    if not np.isnan(single_ms):
        needs = marked(f"{number(single_ms)} ms", single["degraded"].any(), single["one"].any())
        notes.insert(1, f"speed-up: over the fastest device alone, which needs {needs}")
    return notes + mark_notes((cell for row in rows for cell in row[2:]), SPEEDUP_NOTE)


def heterogeneous_plot(frame: pd.DataFrame, out_dir: Path, name: str = "heterogeneous") -> list[Path]:
    """Speed-up and straggler wait with both partitions, at the lowest and at the highest bandwidth.

    Writes name.png and name.pdf to ``out_dir``. Returns these files; none if the frame has one partition only.
    """
    table = partition_table(frame)
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
            _dumbbells(left, here, "speedup", "speedup_degraded")
            _dumbbells(right, here, "straggler_wait_pct", "degraded")
            left.axvline(1, color="black", linewidth=1.2)
            left.set_xscale("log")
            left.set_title(f"{bandwidth:g} Mbps: speed-up over the fastest device")
            right.set_title("straggler wait")
        grid[-1][0].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        grid[-1][0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        grid[-1][0].xaxis.set_minor_formatter(NullFormatter())
        grid[-1][1].xaxis.set_major_formatter(PercentFormatter(100, decimals=0))
        grid[-1][1].set_xlim(left=0)
        grid[-1][0].set_xlabel("speed-up (one device: 1)")
        grid[-1][1].set_xlabel("percent of the latency")
        grid[0][0].invert_yaxis()
        handles = [
            Line2D([], [], color=color, marker=marker, linestyle="", label=words)
            for words, color, marker in PARTITIONS.values()
        ]
        if table[["speedup_degraded_equal", "speedup_degraded_speed"]].any(axis=None):
            handles.append(Line2D([], [], **HOLLOW, label="hollow: degraded"))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
        condition_caption(figure, frame, "Medians over repeats.", 120)
        return save(figure, out_dir / name)


def _dumbbells(axes: Axes, table: pd.DataFrame, column: str, degraded: str) -> None:
    """One line for each label (the index), from its value with the equal partition to that with the other one.

    degraded: the column that says which values have hollow markers.
    """
    y = np.arange(len(table))
    ends = [table[f"{column}_{partition}"].to_numpy(float) for partition in PARTITIONS]
    axes.hlines(y, *ends, color="#BBBBBB", linewidth=2, zorder=1)
    for (partition, (_, color, marker)), x in zip(PARTITIONS.items(), ends, strict=True):
        hollow = table[f"{degraded}_{partition}"].to_numpy() == 1
        faces = np.where(hollow, "white", color)
        axes.scatter(x, y, s=42, marker=marker, c=faces, edgecolors=color, linewidths=1.5, zorder=2)
    axes.set_yticks(y, table.index.tolist())
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
