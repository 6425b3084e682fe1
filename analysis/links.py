"""Do the emulated links keep their promise? Tables and figures of the fidelity experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.describe import short_modes
from analysis.latency import STYLE, save
from analysis.panels import label_panels, panels, spread_line
from analysis.text_table import DEGRADED, NOTES, TextTable, signed_pct

PATTERNS = {"one_way": "one way", "both_ways": "both ways", "all_gather": "all-gather", "all_reduce": "all-reduce"}
SHAPERS: dict[str, tuple[Any, ...]] = {
    "tbf": ("#0072B2", "o", "-"),
    "tclink": ("#D55E00", "s", "--"),
    "netem": ("#009E73", "^", ":"),
}
DEFAULT = "tbf"  # what all other experiments run on
LARGE_BYTES = 10_000  # from here the link decides, below it hosts and transport do
QUEUE_KB = 1000.0  # of rows that do not say it: they are older than the column
RATE_COLOURS = "viridis"
BAND = 0.1  # around the ideal: the tolerance of the experiment


def messages(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per measured point: medians over its repeats.

    Columns: pattern, shaper, devices, rate_mbps, size_bytes, queue_kb, time_ms, ratio = time / ideal, extra_ms = time
    - ideal, goodput = payload's time / time, spread_pct, repeats, rate_error_pct, retransmits, drops,
    burst_credit_bytes, needed_time_scale (missing: none helps), degraded (any repeat).
    """
    rows = frame[(frame["status"] == "ok") & frame["time_ms"].notna()]
    rows = rows.assign(queue_kb=rows["queue_kb"].fillna(QUEUE_KB))
    grouped = rows.groupby(["shaper", "devices", "rate_mbps", "pattern", "size_bytes", "queue_kb"])
    table = grouped.agg(
        time_ms=("time_ms", "median"),
        fastest=("time_ms", "min"),
        slowest=("time_ms", "max"),
        ideal_ms=("ideal_ms", "first"),
        payload_ms=("payload_ms", "first"),
        repeats=("time_ms", "size"),
        rate_error_pct=("rate_error_pct", "first"),
        retransmits=("retransmits", "first"),
        drops=("drops", "first"),
        burst_credit_bytes=("burst_credit_bytes", "first"),
        needed_time_scale=("needed_time_scale", "first"),
        degraded=("fidelity", lambda values: bool((values == "degraded").any())),
    ).reset_index()
    spread = 100 * (table["slowest"] - table["fastest"]) / table["time_ms"]
    return table.assign(
        ratio=table["time_ms"] / table["ideal_ms"],
        extra_ms=table["time_ms"] - table["ideal_ms"],
        goodput=table["payload_ms"] / table["time_ms"],
        spread_pct=spread.where(table["repeats"] > 1),
    )


def promised(table: pd.DataFrame) -> pd.DataFrame:
    """The points of ``messages`` that links are held to: no incast, and of several queues the longest only."""
    return table[table["pattern"].isin(PATTERNS) & (table["queue_kb"] == table["queue_kb"].max())]


def fidelity_tables(frame: pd.DataFrame) -> list[TextTable]:
    """The promise of each link, and the shapers side by side."""
    table = promised(messages(frame))
    tables = [_promise(table[table["shaper"] == DEFAULT]), _side_by_side(table), _lost(frame)]
    return [table for table in tables if table.rows]


def _promise(table: pd.DataFrame) -> TextTable:
    rows = []
    for key, link in table.groupby(["devices", "rate_mbps"]):
        devices, rate = key  # pyright: ignore[reportGeneralTypeIssues] a tuple, as two columns are grouped by
        large, small = link[is_large(link)], link[~is_large(link)]
        errors = link["rate_error_pct"].dropna()
        rows.append(
            [
                f"{devices:g} x {rate:g} Mbps",
                signed_pct(max(errors, key=abs)) if len(errors) else "-",
                *(_worst(large[large["pattern"] == pattern]) for pattern in PATTERNS),
                f"+{small['extra_ms'].max():.2f}" if len(small) else "-",
                f"{link['spread_pct'].max():.0f}%" if link["spread_pct"].notna().any() else "-",
                f"{link['retransmits'].sum():g}",
                f"{link['drops'].sum():g}" if link["drops"].notna().any() else "-",
                _verdict(link),
            ]
        )
    columns = ["links", "rate", *PATTERNS.values(), "small, ms", "spread", "resent", "dropped", "needs"]
    notes = [
        "rate: how far the links are off theirs, the worst point; resent: segments; dropped: packets at full queues",
        f"time over ideal: worst median of messages from {LARGE_BYTES:,} B; ideal: bytes with headers over rate",
        "small: what operations of shorter messages take beyond their ideal, the worst median",
        "spread: slowest less fastest repeat, the worst point",
        "needs: the time_scale that would bring every point within the tolerance; 1: the links keep up in real time",
    ]
    notes += [NOTES[DEGRADED].partition(";")[0]] if table["degraded"].any() else []
    return TextTable(f"Links of shaper {DEFAULT}: time over ideal", columns, rows, notes)


def is_large(table: pd.DataFrame) -> pd.Series:
    """Which points of ``messages`` have messages of LARGE_BYTES or more; an all-reduce sends its numbers in shares."""
    shares = table["devices"].where(table["pattern"] == "all_reduce", 1)
    return table["size_bytes"] / shares >= LARGE_BYTES


def _worst(points: pd.DataFrame) -> str:
    if points.empty:
        return "-"
    worst = points.loc[(points["ratio"] - 1).abs().idxmax()]
    return f"{worst['ratio']:.2f}" + (DEGRADED if points["degraded"].any() else "")


def _verdict(link: pd.DataFrame) -> str:
    """The time_scale that the promise needs."""
    needed = link["needed_time_scale"]
    if needed.isna().any():
        return "none helps"
    return f"{needed.max():g}"


def _side_by_side(table: pd.DataFrame) -> TextTable:
    """Time over ideal of lone messages, by shaper and size, at each rate."""
    lone = _lone(table)
    rows = []
    if lone["shaper"].nunique() > 1:
        for shaper in (name for name in SHAPERS if name in set(lone["shaper"])):
            for size, points in lone[lone["shaper"] == shaper].groupby("size_bytes"):
                cells = points.set_index("rate_mbps")["ratio"].reindex(sorted(lone["rate_mbps"].unique()))
                texts = ["-" if np.isnan(ratio) else f"{ratio:.2f}" for ratio in cells]
                burst = points["burst_credit_bytes"].max()
                rows.append([f"{shaper}, {size:,.0f} B", *texts, f"{burst:,.0f}"])
    columns = ["shaper, message", *(f"{rate:g} Mbps" for rate in sorted(lone["rate_mbps"].unique())), "free bytes"]
    notes = [
        f"{PATTERNS['one_way']}, {lone['devices'].min():g} devices; below 1 it crosses faster than the link allows",
        "free bytes: what an idle link lets through at once, unpaid for; an offloaded packet may be larger still",
    ]
    return TextTable("Shapers side by side: time over ideal of one message", columns, rows, notes)


def _lone(table: pd.DataFrame) -> pd.DataFrame:
    lone = table[table["pattern"] == "one_way"]
    return lone[lone["devices"] == lone["devices"].min()]


def _lost(frame: pd.DataFrame) -> TextTable:
    rows = frame[frame["status"] != "ok"].groupby(["shaper", "status", "error"]).size()
    texts = [[str(shaper), str(status), f"{count}", str(error)] for (shaper, status, error), count in rows.items()]  # pyright: ignore
    return TextTable("Points without a result", ["shaper", "status", "points", "why"], texts, left=frozenset({"why"}))


def fidelity_figures(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """links.png: time over ideal against size by pattern and devices; shapers.png: the shapers beside each other."""
    table = promised(messages(frame))
    files: list[Path] = []
    with plt.style.context(STYLE):
        if not (ours := table[table["shaper"] == DEFAULT]).empty:
            files += _links_figure(frame, ours, out_dir)
        if (lone := _lone(table))["shaper"].nunique() > 1:
            files += _shapers_figure(frame, lone, out_dir)
    return files


def _links_figure(frame: pd.DataFrame, table: pd.DataFrame, out_dir: Path) -> list[Path]:
    patterns = [name for name in PATTERNS if name in set(table["pattern"])]
    devices, rates = sorted(table["devices"].unique()), sorted(table["rate_mbps"].unique())
    colors = plt.get_cmap(RATE_COLOURS)(np.linspace(0, 0.85, len(rates)))
    figure, grid = panels(len(devices), len(patterns), width=3.1, legend=1.4)
    for axes_row, count in zip(grid, devices, strict=True):
        for axes, pattern in zip(axes_row, patterns, strict=True):
            here = table[(table["devices"] == count) & (table["pattern"] == pattern)]
            for rate, color in zip(rates, colors, strict=True):
                _line(axes, here[here["rate_mbps"] == rate], color=color, marker="o", linestyle="-")
            axes.set_title(f"{PATTERNS[pattern]}, {count:g} devices")
            _ratio_axes(axes, table["size_bytes"])
    handles = [Line2D([], [], color=c, marker="o", label=f"{r:g} Mbps") for r, c in zip(rates, colors, strict=True)]
    return _finish(figure, handles, frame, table, out_dir / "links")


def _shapers_figure(frame: pd.DataFrame, table: pd.DataFrame, out_dir: Path) -> list[Path]:
    rates = sorted(table["rate_mbps"].unique())
    columns = min(4, len(rates))
    lines = -(-len(rates) // columns)
    figure, grid = panels(lines, columns, width=3.1, legend=1.4)
    for axes in grid.flat[len(rates) :]:
        axes.set_visible(False)
    shapers = [name for name in SHAPERS if name in set(table["shaper"])]
    for axes, rate in zip(grid.flat, rates, strict=False):
        for shaper in shapers:
            color, marker, dash = SHAPERS[shaper]
            here = table[(table["rate_mbps"] == rate) & (table["shaper"] == shaper)]
            _line(axes, here, color=color, marker=marker, linestyle=dash)
        axes.set_title(f"one message, {rate:g} Mbps")
        _ratio_axes(axes, table["size_bytes"])
    handles = [
        Line2D([], [], color=SHAPERS[s][0], marker=SHAPERS[s][1], linestyle=SHAPERS[s][2], label=s) for s in shapers
    ]
    return _finish(figure, handles, frame, table, out_dir / "shapers")


def _line(axes: Axes, points: pd.DataFrame, **style: Any) -> None:
    """Median time over ideal against size, bars from the fastest to the slowest repeat, hollow where degraded."""
    points = points.sort_values("size_bytes")
    x, y, ideal = (points[name].to_numpy() for name in ("size_bytes", "ratio", "ideal_ms"))
    ends = points["fastest"].to_numpy() / ideal, points["slowest"].to_numpy() / ideal
    spread_line(axes, x, y, ends, points["degraded"].to_numpy(), style, fine=True)


def _ratio_axes(axes: Axes, sizes: pd.Series) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axhspan(1 - BAND, 1 + BAND, color="#BBBBBB", alpha=0.4, linewidth=0)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(sorted(sizes.unique()), [_bytes(size) for size in sorted(sizes.unique())])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _bytes(size: float) -> str:
    """320 B, 10 KB, 4 MB."""
    for unit, text in ((1e6, "MB"), (1e3, "KB")):
        if size >= unit:
            return f"{size / unit:g} {text}"
    return f"{size:g} B"


def _finish(figure: Figure, handles: list[Line2D], frame: pd.DataFrame, table: pd.DataFrame, stem: Path) -> list[Path]:
    caption = f"Message size; median over repeats, bars: fastest to slowest. Grey: {BAND:.0%} around the ideal. "
    label_panels(figure, handles, bool(table["degraded"].any()), "time over ideal", caption + short_modes(frame) + ".")
    return save(figure, stem)
