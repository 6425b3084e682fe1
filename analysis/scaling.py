"""How speed-up changes with the number of devices and with the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.cells import DEGRADED, TextTable, number
from analysis.figures import STYLE, condition_caption, save
from analysis.panels import HOLLOW, spread_line
from analysis.styles import line_styles
from analysis.tables import points
from analysis.words import is_analytic, statistic
from testbed.rows import BASELINE

IDEAL: dict[str, Any] = {"color": "#444444", "linewidth": 1, "linestyle": (0, (6, 3))}


def parallel_points(frame: pd.DataFrame) -> pd.DataFrame:
    """The points of ``tables.points`` that several devices measured and that have a speed-up."""
    table = points(frame)
    return table[(table["method"] != BASELINE) & (table["speedup"] > 0) & (table["bandwidth_mbps"] > 0)]


def devices_plot(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Speed-up against the number of devices; dashed: as many times as fast as there are devices.

    Rows of one number of tokens. Returns the files: none for fewer than two numbers of devices.
    """
    return _plot(frame, "devices", out_dir, ideal="N times on N devices")


def tokens_plot(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Speed-up against the number of tokens, of rows of one number of devices; no files for one of tokens."""
    return _plot(frame, "tokens", out_dir)


def _plot(frame: pd.DataFrame, axis: str, out_dir: Path, ideal: str = "") -> list[Path]:
    """Speed-up against a column, a panel for the lowest, a middle and the highest bandwidth; the file has its name."""
    table = parallel_points(frame)
    counts = sorted(table[axis].unique())
    if len(counts) < 2:
        return []
    bandwidths = sorted(table["bandwidth_mbps"].unique())
    shown = sorted({bandwidths[0], bandwidths[len(bandwidths) // 2], bandwidths[-1]})
    styles = line_styles(table.assign(label=table["variant"]))
    with plt.style.context(STYLE):
        figure, grid = plt.subplots(
            1, len(shown), figsize=(3.3 * len(shown) + 1.9, 4.2), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, bandwidth in zip(grid[0], shown, strict=True):
            here = table[table["bandwidth_mbps"] == bandwidth]
            if ideal:
                axes.plot(counts, counts, **IDEAL)
            axes.axhline(1, color="black", linewidth=1.2)
            for variant, rows in here.groupby("variant", sort=False):
                _line(axes, axis, rows.sort_values(axis), styles[str(variant)])
            axes.set_title(f"{bandwidth:g} Mbps")
            axes.set_xlabel(axis)
            _scales(axes, counts)
        grid[0][0].set_ylabel("speed-up over one device")
        handles = [Line2D([], [], **styles[variant], label=variant) for variant in table["variant"].drop_duplicates()]
        handles += [Line2D([], [], **IDEAL, label=ideal)] if ideal else []
        handles.append(Line2D([], [], color="black", linewidth=1.2, label="one device"))
        if table["degraded"].any():
            handles.append(Line2D([], [], **HOLLOW, label="hollow: degraded"))
        figure.legend(handles=handles, loc="outside right center", handlelength=3.2)
        bars = "" if is_analytic(frame) else "; bars: slowest to fastest repeat"
        condition_caption(figure, frame, f"{statistic(frame).capitalize()}{bars}.", 110)
        return save(figure, out_dir / axis)


def _scales(axes: Axes, counts: Sequence[float]) -> None:
    """Both logarithmic, with the counts that were measured and plain numbers."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(counts, [f"{count:g}" for count in counts])
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def _line(axes: Axes, axis: str, rows: pd.DataFrame, style: dict[str, Any]) -> None:
    columns = (axis, "speedup", "speedup_min", "speedup_max", "degraded")
    x, y, low, high, degraded = (rows[name].to_numpy() for name in columns)
    spread_line(axes, x, y, (low, high), degraded, style)


def tokens_tables(frame: pd.DataFrame) -> list[TextTable]:
    """Latency and speed-up, a column for each number of tokens; none for fewer than two of them."""
    table = points(frame)
    counts = sorted(table["tokens"].dropna().unique())
    if len(counts) < 2:
        return []
    names = {"latency_ms": f"Latency (ms, {statistic(frame)}) by number of tokens"}
    names |= {"speedup": "Speed-up over one device by number of tokens"} if table["speedup"].notna().any() else {}
    return [_by_tokens(table, title, column, counts) for column, title in names.items()]


def _by_tokens(table: pd.DataFrame, title: str, column: str, counts: Sequence[float]) -> TextTable:
    rows = []
    places = ["variant", "devices", "bandwidth_mbps"]
    for (variant, devices, bandwidth), here in table.groupby(places, sort=False):  # pyright: ignore[reportGeneralTypeIssues]
        cells = {
            point["tokens"]: number(point[column]) + (DEGRADED if point["degraded"] else "")
            for _, point in here.iterrows()
        }
        rows.append([variant, f"{devices:g}", f"{bandwidth:g}", *(cells.get(count, "-") for count in counts)])
    return TextTable(title, ["method", "devices", "Mbps", *(f"{count:g} tokens" for count in counts)], rows)
