"""How speed-up changes with the number of devices and with the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.describe import is_analytic, statistic
from analysis.panels import HOLLOW, STYLE, condition_caption, save, spread_line
from analysis.points import points
from analysis.styles import line_styles
from analysis.text_table import DEGRADED_NOTE, SPEEDUP_NOTE, TextTable, mark_notes, marked, number
from testbed.results.schema import BASELINE

MAX_LINES = 12  # in a panel; if there are more variants, each method has a row of panels
IDEAL: dict[str, Any] = {"color": "#444444", "linewidth": 1, "linestyle": (0, (6, 3))}


def parallel_points(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``analysis.points.points`` on several devices that have a speed-up and a bandwidth."""
    table = points(frame)
    return table[(table["method"] != BASELINE) & (table["speedup"] > 0) & (table["bandwidth_mbps"] > 0)]


def devices_plot(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Speed-up over one device against the number of devices; a dashed line is linear speed-up.

    frame: rows of one number of tokens. Panels are for the lowest, a middle and the highest bandwidth. Writes
    devices.png and devices.pdf to ``out_dir``. Returns these files; none for fewer than two numbers of devices.
    """
    return _plot(frame, "devices", out_dir, ideal="linear speed-up")


def tokens_plot(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Speed-up over one device against the number of tokens.

    frame: rows of one number of devices. Panels are for the lowest, a middle and the highest bandwidth. Writes
    tokens.png and tokens.pdf to ``out_dir``. Returns these files; none for fewer than two numbers of tokens.
    """
    return _plot(frame, "tokens", out_dir)


def _plot(frame: pd.DataFrame, axis: str, out_dir: Path, ideal: str = "") -> list[Path]:
    """Speed-up against the column ``axis``, which also names the file. ideal: label of a dashed line y = x."""
    table = parallel_points(frame)
    counts = sorted(table[axis].unique())
    if len(counts) < 2:
        return []
    bandwidths = sorted(table["bandwidth_mbps"].unique())
    shown = sorted({bandwidths[0], bandwidths[len(bandwidths) // 2], bandwidths[-1]})
    styles = line_styles(table.assign(label=table["variant"]))
    crowded = table["variant"].nunique() > MAX_LINES
    lines = [rows for _, rows in table.groupby("method", sort=False)] if crowded else [table]
    with plt.style.context(STYLE):
        size = (3.3 * len(shown) + 1.9, 1.9 * len(lines) + 1.2 if crowded else 4.2)
        figure, grid = plt.subplots(
            len(lines), len(shown), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        for line, part in zip(grid, lines, strict=True):
            for axes, bandwidth in zip(line, shown, strict=True):
                if ideal:
                    axes.plot(counts, counts, **IDEAL)
                axes.axhline(1, color="black", linewidth=1.2)
                _lines(axes, axis, part[part["bandwidth_mbps"] == bandwidth], styles)
                _scales(axes, counts, (1.0,) if crowded else (1.0, 2.0, 5.0))
            handles = [Line2D([], [], **styles[name], label=name) for name in part["variant"].drop_duplicates()]
            line[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), handlelength=3.2)
        for axes, bandwidth in zip(grid[0], shown, strict=True):
            axes.set_title(f"{bandwidth:g} Mbps")
        for axes in grid[-1]:
            axes.set_xlabel(f"number of {axis}")
        figure.supylabel("speed-up over one device")
        handles = [Line2D([], [], **IDEAL, label=ideal)] if ideal else []
        handles.append(Line2D([], [], color="black", linewidth=1.2, label="one device"))
        if table["speedup_degraded"].any():
            handles.append(Line2D([], [], **HOLLOW, label="hollow: degraded"))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=3.2)
        bars = "" if is_analytic(frame) else "; bars: slowest to fastest repeat"
        condition_caption(figure, frame, f"{statistic(frame).capitalize()}{bars}.", 110)
        return save(figure, out_dir / axis)


def _scales(axes: Axes, counts: Sequence[float], labels: Sequence[float]) -> None:
    """Logarithmic axes with plain numbers. counts: ticks of the x axis. labels: ticks of the y axis, times 10^n."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(counts, [f"{count:g}" for count in counts])
    axes.yaxis.set_major_locator(LogLocator(subs=labels))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def _lines(axes: Axes, axis: str, table: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """One line for each variant."""
    columns = (axis, "speedup", "speedup_min", "speedup_max", "speedup_degraded")
    for variant, rows in table.sort_values(axis).groupby("variant", sort=False):
        x, y, low, high, degraded = (rows[name].to_numpy() for name in columns)
        spread_line(axes, x, y, (low, high), degraded, styles[str(variant)])


def tokens_tables(frame: pd.DataFrame) -> list[TextTable]:
    """Latency in ms and, if the rows have any, speed-up; a column for each number of tokens.

    No tables for fewer than two numbers of tokens.
    """
    table = points(frame)
    counts = sorted(table["tokens"].dropna().unique())
    if len(counts) < 2:
        return []
    title = f"Latency (ms, {statistic(frame)}) by number of tokens"
    tables = [_by_tokens(table, title, "latency_ms", "", DEGRADED_NOTE, counts)]
    if table["speedup"].notna().any():
        title = "Speed-up over one device by number of tokens"
        tables.append(_by_tokens(table, title, "speedup", "speedup_", SPEEDUP_NOTE, counts))
    return tables


def _by_tokens(
    table: pd.DataFrame, title: str, column: str, prefix: str, note: str, counts: Sequence[float]
) -> TextTable:
    """A column of ``points``. prefix: of its columns ``degraded`` and ``one``. note: what DEGRADED means here."""
    rows = []
    places = ["variant", "devices", "bandwidth_mbps"]
    for (variant, devices, bandwidth), here in table.groupby(places, sort=False):  # pyright: ignore[reportGeneralTypeIssues]
        marks = here[f"{prefix}degraded"], here[f"{prefix}one"]
        cells = dict(zip(here["tokens"], map(marked, map(number, here[column]), *marks), strict=True))
        rows.append([variant, f"{devices:g}", f"{bandwidth:g}", *(cells.get(count, "-") for count in counts)])
    notes = mark_notes((cell for row in rows for cell in row[3:]), note)
    return TextTable(title, ["method", "devices", "Mbps", *(f"{count:g} tokens" for count in counts)], rows, notes)
