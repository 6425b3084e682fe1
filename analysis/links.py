"""Fidelity of the emulated links: tables and figures of the fidelity experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.describe import short_modes
from analysis.panels import STYLE, label_panels, panels, save, spread_line
from analysis.text_table import TextTable, mark_notes, marked, signed_pct

PATTERNS = {"one_way": "one way", "both_ways": "both ways", "all_gather": "all-gather", "all_reduce": "all-reduce"}
SHAPERS: dict[str, tuple[Any, ...]] = {
    "tbf": ("#0072B2", "o", "-"),
    "tclink": ("#D55E00", "s", "--"),
    "netem": ("#009E73", "^", ":"),
}
DEFAULT_SHAPER = "tbf"  # of all other experiments
LARGE_BYTES = 10_000  # the link determines the time of such messages; hosts and transport that of shorter ones
QUEUE_KB = 1000.0  # of rows that are older than the column
RATE_COLORS = "viridis"
TOLERANCE = 0.1  # around the ideal time, as in the experiment
TOLERANCE_TEXT = f"{TOLERANCE:.0%} of the ideal time plus a small time for each message"


def messages(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per measured point: medians over its repeats.

    Columns: shaper, devices, rate_mbps, pattern, size_bytes, queue_kb, time_ms with fastest and slowest, ideal_ms,
    payload_ms (the payload alone), ratio = time / ideal, extra_ms = time - ideal, goodput = payload_ms / time,
    spread_pct (missing for one repeat), repeats, rate_error_pct, retransmits, drops, burst_credit_bytes,
    needed_time_scale (missing if no time scale reaches the tolerance), degraded (any repeat), one (one repeat; there is
    always a warm-up).
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
        one=table["repeats"] < 2,
    )


def without_incast(table: pd.DataFrame) -> pd.DataFrame:
    """The points of ``messages`` that are no incast; if there are several queue lengths, only the longest."""
    return table[table["pattern"].isin(PATTERNS) & (table["queue_kb"] == table["queue_kb"].max())]


def fidelity_tables(frame: pd.DataFrame) -> list[TextTable]:
    """The fidelity of the default shaper's links, all shapers side by side, and points without a result."""
    table = without_incast(messages(frame))
    tables = [_default_shaper(table[table["shaper"] == DEFAULT_SHAPER]), _side_by_side(table), _unfinished(frame)]
    return [table for table in tables if table.rows]


def _default_shaper(table: pd.DataFrame) -> TextTable:
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
                marked(_extra(small), small["degraded"].any(), small["one"].any()),
                f"{link['spread_pct'].max():.0f}%" if link["spread_pct"].notna().any() else "-",
                f"{link['retransmits'].sum():g}",
                f"{link['drops'].sum():g}" if link["drops"].notna().any() else "-",
                _needed_scale(link),
            ]
        )
    columns = ["links", "rate error", *PATTERNS.values(), "small, ms", "spread", "resent", "dropped", "needed scale"]
    notes = [
        "rate error: of the worst point; resent: segments; dropped: packets at full queues",
        f"{', '.join(PATTERNS.values())}: time divided by the ideal time, the worst median of messages of "
        f"{LARGE_BYTES:,} B or more; ideal time: bytes with headers divided by the rate",
        "small, ms: time beyond the ideal time of shorter messages, the worst median",
        "spread: slowest minus fastest repeat over the median, of the worst point",
        f"needed scale: the time_scale at which every point is within the tolerance ({TOLERANCE_TEXT}); 1: real time "
        "is enough",
    ]
    notes += mark_notes(cell for row in rows for cell in row[2:])
    return TextTable(f"Links of shaper {DEFAULT_SHAPER}: time divided by the ideal time", columns, rows, notes)


def is_large(table: pd.DataFrame) -> pd.Series:
    """Which points have messages of LARGE_BYTES or more, bool [n]. An all-reduce of N devices sends 1/N at a time."""
    parts = table["devices"].where(table["pattern"] == "all_reduce", 1)
    return table["size_bytes"] / parts >= LARGE_BYTES


def _extra(small: pd.DataFrame) -> str:
    return f"{small['extra_ms'].max():+.2f}" if small["extra_ms"].notna().any() else "-"


def _worst(points: pd.DataFrame) -> str:
    ratios = points["ratio"].dropna()
    if ratios.empty:
        return "-"
    return marked(f"{ratios[(ratios - 1).abs().idxmax()]:.2f}", points["degraded"].any(), points["one"].any())


def of_degraded(points: pd.DataFrame) -> str:
    """Words behind a number from these points: how many of them are degraded; "" if none is."""
    degraded = int(points["degraded"].sum())
    return f" ({degraded} of {len(points)} points are degraded)" if degraded else ""


def _needed_scale(link: pd.DataFrame) -> str:
    """The time_scale at which all points of a link are within the tolerance; none if there is no such scale."""
    needed = link["needed_time_scale"]
    if needed.isna().any():
        return "none"
    return f"{needed.max():g}"


def _side_by_side(table: pd.DataFrame) -> TextTable:
    """Time divided by the ideal time of single messages, by shaper and size, at each rate; no rows for one shaper."""
    single = _single_messages(table)
    rows = []
    if single["shaper"].nunique() > 1:
        for shaper in (name for name in SHAPERS if name in set(single["shaper"])):
            for size, points in single[single["shaper"] == shaper].groupby("size_bytes"):
                cells = points.set_index("rate_mbps")[["ratio", "degraded", "one"]]
                cells = cells.reindex(sorted(single["rate_mbps"].unique()))
                texts = ["-" if np.isnan(ratio) else f"{ratio:.2f}" for ratio in cells["ratio"]]
                burst = points["burst_credit_bytes"].max()
                bytes_text = "-" if np.isnan(burst) else f"{burst:,.0f}"
                marks = cells["degraded"] == 1, cells["one"] == 1
                rows.append([f"{shaper}, {size:,.0f} B", *map(marked, texts, *marks), bytes_text])
    columns = [
        "shaper, message",
        *(f"{rate:g} Mbps" for rate in sorted(single["rate_mbps"].unique())),
        "burst credit, bytes",
    ]
    notes = [
        f"{PATTERNS['one_way']}, {single['devices'].min():g} devices; below 1: faster than the link's rate allows",
        "burst credit: bytes that an idle link passes without delay; one GSO segment may be larger",
    ]
    notes += mark_notes(cell for row in rows for cell in row[1:])
    return TextTable("Shapers side by side: time of one message divided by the ideal time", columns, rows, notes)


def _single_messages(table: pd.DataFrame) -> pd.DataFrame:
    single = table[table["pattern"] == "one_way"]
    return single[single["devices"] == single["devices"].min()]


def _unfinished(frame: pd.DataFrame) -> TextTable:
    rows = frame[frame["status"] != "ok"].groupby(["shaper", "status", "error"]).size()
    texts = [[str(shaper), str(status), f"{count}", str(error)] for (shaper, status, error), count in rows.items()]  # pyright: ignore
    return TextTable(
        "Points without a result", ["shaper", "status", "points", "error"], texts, left=frozenset({"error"})
    )


def fidelity_figures(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Time divided by the ideal time against message size.

    Writes links.png (the default shaper, a panel for each pattern and number of devices) and shapers.png (single
    messages, a panel for each rate; only if there are several shapers), both also as PDF, to ``out_dir``. Returns these
    files.
    """
    table = without_incast(messages(frame))
    files: list[Path] = []
    with plt.style.context(STYLE):
        if not (default := table[table["shaper"] == DEFAULT_SHAPER]).empty:
            files += _links_figure(frame, default, out_dir)
        if (single := _single_messages(table))["shaper"].nunique() > 1:
            files += _shapers_figure(frame, single, out_dir)
    return files


def _links_figure(frame: pd.DataFrame, table: pd.DataFrame, out_dir: Path) -> list[Path]:
    patterns = [name for name in PATTERNS if name in set(table["pattern"])]
    devices, rates = sorted(table["devices"].unique()), sorted(table["rate_mbps"].unique())
    colors = plt.get_cmap(RATE_COLORS)(np.linspace(0, 0.85, len(rates)))
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
    """Median ratio against size, bars from the fastest to the slowest repeat, hollow markers where degraded."""
    points = points.sort_values("size_bytes")
    x, y, ideal = (points[name].to_numpy() for name in ("size_bytes", "ratio", "ideal_ms"))
    ends = points["fastest"].to_numpy() / ideal, points["slowest"].to_numpy() / ideal
    spread_line(axes, x, y, ends, points["degraded"].to_numpy(), style, fine=True)


def _ratio_axes(axes: Axes, sizes: pd.Series) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axhspan(1 - TOLERANCE, 1 + TOLERANCE, color="#BBBBBB", alpha=0.4, linewidth=0)
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
    caption = "Message size; median over repeats; bars: fastest to slowest repeat; "
    caption += f"gray: within {TOLERANCE:.0%} of the ideal time; {short_modes(frame)}."
    label_panels(figure, handles, bool(table["degraded"].any()), "time / ideal time", caption)
    return save(figure, stem)
