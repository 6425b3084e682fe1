"""Incast: several devices send to one. Goodput and losses by queue length and by the order of the senders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, PercentFormatter

from analysis.describe import short_modes
from analysis.links import fidelity_tables, messages, of_degraded
from analysis.panels import STYLE, label_panels, panels, save, spread_line
from analysis.text_table import TextTable, mark_notes, marked

ORDERS: dict[str, tuple[Any, ...]] = {  # words, color, marker, dash
    "incast_all": ("simultaneously", "#D55E00", "s", "--"),
    "incast_ordered": ("one by one", "#0072B2", "o", "-"),
}
MIN_GOODPUT = 0.8  # of the rate; a queue with less is too short


def incasts(frame: pd.DataFrame) -> pd.DataFrame:
    """The points of ``messages`` in which all other devices send to device 0, in the order of tables."""
    table = messages(frame)
    return table[table["pattern"].isin(ORDERS)].sort_values(["devices", "rate_mbps", "size_bytes", "queue_kb"])


def link_tables(frame: pd.DataFrame) -> list[TextTable]:
    """All tables of a fidelity experiment: incast, then the fidelity of the links; tables without rows are left out."""
    table = incast_table(frame)
    return [*([table] if table.rows else []), *fidelity_tables(frame)]


def incast_table(frame: pd.DataFrame) -> TextTable:
    """A row for each kind of message and queue length; no rows if the frame has no incast.

    Columns: messages, queue length in KB, and for each order of the senders the time divided by the ideal time, the
    goodput in percent of the receiver's rate, and dropped packets / retransmitted segments.
    """
    table, rows = incasts(frame), []
    for key, points in table.groupby(["devices", "rate_mbps", "size_bytes", "queue_kb"]):
        devices, rate, size, queue = cast(tuple[float, ...], key)
        cells = [cell for order in ORDERS for cell in _cells(points[points["pattern"] == order])]
        rows.append([f"{devices - 1:g} x {size / 1000:g} KB, {rate:g} Mbps", f"{queue:g}", *cells])
    columns = [name for words, *_ in ORDERS.values() for name in (words, "goodput", "lost")]
    notes = [
        "simultaneously: all devices send at the same time; one by one: each sends when the previous one is done; "
        "both columns: time divided by the ideal time",
        "queue: of the receiver's port; goodput: payload per time, in percent of the receiver's rate",
        "lost: packets dropped at full queues / segments sent again, in all repeats of a point together",
    ]
    notes += mark_notes(cell for row in rows for cell in row[2:])
    return TextTable("Incast: many devices send to one", ["messages", "queue, KB", *columns], rows, notes)


def _cells(points: pd.DataFrame) -> list[str]:
    """[time over ideal, goodput, lost] of a point; - if there is none."""
    if points.empty:
        return ["-"] * 3
    point = points.iloc[0]
    marks = bool(point["degraded"]), bool(point["one"])
    counts = ["-" if pd.isna(point[name]) else f"{point[name]:,.0f}" for name in ("drops", "retransmits")]
    ratio = "-" if pd.isna(point["ratio"]) else f"{point['ratio']:.2f}"
    goodput = "-" if pd.isna(point["goodput"]) else f"{point['goodput']:.0%}"
    return [marked(ratio, *marks), marked(goodput, *marks), " / ".join(counts)]


def incast_sentences(frame: pd.DataFrame) -> list[str]:
    """One sentence for each order, number of devices, rate and size: the queues that reach MIN_GOODPUT."""
    sentences = []
    table = incasts(frame).dropna(subset="goodput")  # rows of another version lack it
    for key, points in table.groupby(["devices", "rate_mbps", "size_bytes", "pattern"]):
        devices, rate, size, pattern = cast(tuple[Any, ...], key)
        shortest, longest = points.iloc[0], points.iloc[-1]
        short = points[points["goodput"] < MIN_GOODPUT]["queue_kb"].max()
        enough = points[points["queue_kb"] > short]["queue_kb"].min() if pd.notna(short) else points["queue_kb"].min()
        reached = (
            f"queues of {enough:g} KB and more reach {MIN_GOODPUT:.0%} of the rate"
            if pd.notna(enough)
            else f"the longest queue, {longest['queue_kb']:g} KB, stays below {MIN_GOODPUT:.0%} of the rate"
        )
        sentences.append(
            f"{devices - 1:g} devices send {size:,.0f} B each to one device at {rate:g} Mbps, {ORDERS[pattern][0]}: "
            f"{reached}; the shortest queue, {shortest['queue_kb']:g} KB, reaches {shortest['goodput']:.0%}"
            f"{of_degraded(points)}."
        )
    return sentences


def incast_figures(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Goodput against queue length, a line for each order of the senders.

    Writes incast.png and incast.pdf to ``out_dir``. Returns these files; none if the frame has no incast.
    """
    table = incasts(frame)
    if table.empty:
        return []
    links = sorted(set(zip(table["devices"], table["rate_mbps"], strict=True)))
    sizes = sorted(table["size_bytes"].unique())
    with plt.style.context(STYLE):
        figure, grid = panels(len(links), len(sizes), width=3.4, legend=1.8)
        for row, (devices, rate) in zip(grid, links, strict=True):
            for axes, size in zip(row, sizes, strict=True):
                here = table[(table["devices"] == devices) & (table["rate_mbps"] == rate)]
                _lines(axes, here[here["size_bytes"] == size])
                axes.set_title(f"{devices - 1:g} x {size / 1000:g} KB to one, {rate:g} Mbps")
                _axes(axes, table["queue_kb"])
        for axes in grid[-1]:
            axes.set_xlabel("queue of the receiver's port (KB)")
        handles = [
            Line2D([], [], color=color, marker=marker, linestyle=dash, label=words)
            for words, color, marker, dash in ORDERS.values()
        ]
        caption = f"Median over repeats; bars: fastest to slowest repeat; {short_modes(frame)}."
        label_panels(figure, handles, bool(table["degraded"].any()), "goodput / receiver's rate", caption)
        return save(figure, out_dir / "incast")


def _lines(axes: Axes, table: pd.DataFrame) -> None:
    for order, (_, color, marker, dash) in ORDERS.items():
        points = table[table["pattern"] == order]
        x, y, payload = (points[name].to_numpy() for name in ("queue_kb", "goodput", "payload_ms"))
        ends = payload / points["slowest"].to_numpy(), payload / points["fastest"].to_numpy()
        style = {"color": color, "marker": marker, "linestyle": dash}
        spread_line(axes, x, y, ends, points["degraded"].to_numpy(), style, fine=True)


def _axes(axes: Axes, queues: pd.Series) -> None:
    axes.set_xscale("log")
    axes.set_xticks(sorted(queues.unique()), [f"{queue:g}" for queue in sorted(queues.unique())])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
