"""Figures of latency and speed-up. The caption of each figure says how its numbers were made."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from analysis.describe import MODEL, is_analytic, values
from analysis.panels import CAPTION, HOLLOW, STYLE, condition_caption, conditions, save, spread_line
from analysis.paper.latency import paper_comparison
from analysis.points import points
from analysis.styles import PARTS, line_styles

MAX_LABELED_BANDWIDTHS = 12  # matplotlib chooses the ticks if there are more
CAPTION_CHARS = 125  # of a line


def speedup_plot(frame: pd.DataFrame, out_dir: Path | str) -> list[Path]:
    """Speed-up over one device against bandwidth in Mbps, on logarithmic axes.

    Each method variant is a line. Bars reach from the slowest to the fastest repeat. Hollow markers are degraded
    speed-ups: the point is degraded, or the ``single`` that it is compared with. Stars are speed-ups that the paper
    reports. frame: rows of a latency experiment (``load_rows``). Writes speedup.png and speedup.pdf to ``out_dir``.
    Returns these files; none if the rows have no speed-up.
    """
    table = points(frame)
    table = table[(table["method"] != "single") & (table["speedup"] > 0) & (table["bandwidth_mbps"] > 0)]
    if table.empty:
        return []
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 5.0))
        handles = _speedup_lines(axes, table)
        axes.axhline(1, color="black", linewidth=1.2)
        handles.append(Line2D([], [], color="black", linewidth=1.2, label="one device"))
        handles += _reported_stars(axes, frame, table)
        if table["speedup_degraded"].any():
            handles.append(Line2D([], [], **HOLLOW, label="hollow: degraded"))
        _log_axes(axes, np.unique(table["bandwidth_mbps"]))
        axes.set_xlabel("link bandwidth (Mbps)")
        axes.set_ylabel("speed-up over one device")
        axes.set_title(f"Speed-up over one device against bandwidth: {_how(frame)}")
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.2, labelspacing=0.8)
        bars = "; bars: slowest to fastest repeat" if (table["repeats"] > 1).any() else ""
        _caption(axes, f"{_statistic(table)}{bars}. {conditions(frame)}.")
        return save(figure, Path(out_dir) / "speedup")


def latency_breakdown(frame: pd.DataFrame, out_dir: Path | str) -> list[Path]:
    """The parts of the latency at the lowest and at the highest bandwidth, as stacked bars.

    The left panels are in ms, with the total beside each bar. The right panels are in percent of the total, because a
    slow method makes the bars of all others too short to read. frame: rows of a latency experiment. Writes
    breakdown.png and breakdown.pdf to ``out_dir``. Returns these files; none if no point has parts.
    """
    table = points(frame)
    table = table[table[[*list(PARTS)[:-1]]].notna().any(axis=1)]
    if table.empty:
        return []
    bandwidths = table["bandwidth_mbps"].dropna().unique()
    shown = sorted({float(bandwidths.min()), float(bandwidths.max())}) if len(bandwidths) else [np.nan]
    with plt.style.context(STYLE):
        labels = table["label"].drop_duplicates()
        height = len(shown) * (0.9 + 0.36 * len(labels)) + 0.6
        figure, grid = plt.subplots(
            len(shown),
            2,
            figsize=(10.5, height),
            sharey="row",
            squeeze=False,
            layout="constrained",
            width_ratios=(3, 2),
        )
        for row, bandwidth in zip(grid, shown, strict=True):
            here = table[table["bandwidth_mbps"] == bandwidth] if np.isfinite(bandwidth) else table
            _bars(row[0], row[1], here.set_index("label").reindex(labels))
            at = f" at {bandwidth:g} Mbps" if np.isfinite(bandwidth) else ""
            row[0].set_title(f"Latency{at}: {_how(frame)}")
            row[1].set_title("fraction of the latency")
        grid[-1][0].set_xlabel("latency (ms)")
        grid[-1][1].set_xlabel("percent of the latency")
        used = [name for name in PARTS if (_parts(table)[name] > 0).any()]
        handles = [
            Patch(facecolor=PARTS[n][1], hatch=PARTS[n][2], edgecolor="#333333", label=PARTS[n][0]) for n in used
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
        condition_caption(figure, frame, f"{_statistic(table)}.", 130)
        return save(figure, Path(out_dir) / "breakdown")


def _speedup_lines(axes: Axes, table: pd.DataFrame) -> list[Line2D]:
    styles = line_styles(table)
    handles: dict[str, tuple[float, Line2D]] = {}
    for label, rows in table.groupby("label", sort=False):
        rows, style = rows.sort_values("bandwidth_mbps"), styles[str(label)]
        columns = ("bandwidth_mbps", "speedup", "speedup_min", "speedup_max", "speedup_degraded")
        x, y, low, high, degraded = (rows[name].to_numpy() for name in columns)
        spread_line(axes, x, y, (low, high), degraded, style)
        handles[str(label)] = (y[-1], Line2D([], [], **style, label=str(label)))
    return [line for _, line in sorted(handles.values(), key=lambda item: -item[0])]  # as the lines end at the right


def _reported_stars(axes: Axes, frame: pd.DataFrame, table: pd.DataFrame) -> list[Line2D]:
    reported = paper_comparison(frame)
    reported = reported[reported["ratio"].str.endswith(" over single")]
    if reported.empty:
        return []
    styles = line_styles(table)
    star: dict[str, Any] = {
        "marker": "*",
        "markersize": 15,
        "markerfacecolor": "none",
        "markeredgewidth": 1.3,
        "linestyle": "",
    }
    for _, point in reported.iterrows():
        color = styles[point["ratio"].removesuffix(" over single")]["color"]
        axes.plot(point["bandwidth_mbps"], point["paper"], **star, color=color, zorder=5)
    return [Line2D([], [], **star, color="#444444", label="reported by the paper\n(computed: bits / bandwidth)")]


def _log_axes(axes: Axes, bandwidths: np.ndarray) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    decades = np.log10(high / low)
    subs = (1.0,) if decades > 3.3 else (1.0, 2.0, 5.0) if decades > 1 else (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(NullFormatter())
    if len(bandwidths) <= MAX_LABELED_BANDWIDTHS:
        axes.set_xticks(bandwidths)
        axes.minorticks_off()
    axes.set_xlim(bandwidths.min() / 1.2, bandwidths.max() * 1.2)


def _bars(absolute: Axes, relative: Axes, table: pd.DataFrame) -> None:
    """Horizontal stacked bars of one bandwidth, the first method on top. table: points, with the labels as index."""
    parts, total = _parts(table), table["latency_ms"].to_numpy()
    y = np.arange(len(table))[::-1]
    left = np.zeros(len(table))
    for name, (_, color, hatch) in PARTS.items():
        value = parts[name].to_numpy()
        look = {"color": color, "hatch": hatch, "edgecolor": "#333333", "linewidth": 0.4, "height": 0.68}
        absolute.barh(y, value, left=left, **look)
        relative.barh(y, value / total, left=left / total, **look)
        left = left + value
    for position, end, latency, degraded in zip(y, left, total, table["degraded"] == 1, strict=True):
        text = "no result" if np.isnan(latency) else f"{latency:,.0f} ms" if latency >= 100 else f"{latency:.1f} ms"
        text += " (degraded)" if degraded else ""
        absolute.annotate(
            text, (np.fmax(end, latency), position), (4, 0), textcoords="offset points", va="center", fontsize=9
        )
    absolute.set_yticks(y, table.index.tolist())
    absolute.set_xlim(0, 1.16 * float(np.nanmax(np.fmax(left, total))))
    absolute.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    relative.set_xlim(0, max(1.0, float(np.nanmax(left / total))))
    relative.xaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (absolute, relative):
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)


def _parts(table: pd.DataFrame) -> pd.DataFrame:
    """The parts in ms, missing ones as 0, and the rest of the latency; a rest below 0.5% is rounding, and becomes 0."""
    parts = table[[*list(PARTS)[:-1]]].fillna(0.0)
    other = (table["latency_ms"] - parts.sum(axis=1)).clip(lower=0)
    return parts.assign(other_ms=other.where(other > 0.005 * table["latency_ms"], 0.0))


def _how(frame: pd.DataFrame) -> str:
    """Network backend and compute mode, for the title: figures are often copied without their captions."""
    return ", ".join("/".join(values(frame, column)) for column in ("network", "compute_mode"))


def _statistic(table: pd.DataFrame) -> str:
    """What a bar or a marker shows, as the beginning of a sentence."""
    if is_analytic(table):
        return MODEL.capitalize()
    low, high = int(table["repeats"].min()), int(table["repeats"].max())
    count = f"{low}" if low == high else f"{low} to {high}"
    return f"Median over {count} repeat{'s' if high > 1 else ''}"


def _caption(axes: Axes, text: str) -> None:
    """A caption below the axes, whose legend stands outside of a layout that is not constrained."""
    caption = textwrap.fill(text, CAPTION_CHARS)
    axes.annotate(caption, (0, 0), (0, -42), xycoords="axes fraction", textcoords="offset points", va="top", **CAPTION)
