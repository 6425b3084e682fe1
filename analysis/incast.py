"""Incast: what the length of a queue and the order of senders make of many devices that send to one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, PercentFormatter

from analysis.describe import short_modes
from analysis.latency import STYLE, save
from analysis.links import fidelity_tables, messages
from analysis.panels import label_panels, panels, spread_line
from analysis.text_table import DEGRADED, TextTable

ORDERS: dict[str, tuple[Any, ...]] = {  # words, color, marker, dash
    "incast_all": ("at once", "#D55E00", "s", "--"),
    "incast_ordered": ("in turn", "#0072B2", "o", "-"),
}
CLIFF = 0.8  # of the rate: below it, a queue is too short


def incasts(frame: pd.DataFrame) -> pd.DataFrame:
    """The points of ``messages`` in which all others send to device 0."""
    table = messages(frame)
    return table[table["pattern"].isin(ORDERS)].sort_values(["devices", "rate_mbps", "size_bytes", "queue_kb"])


def link_tables(frame: pd.DataFrame) -> list[TextTable]:
    """Everything that is said of links: whether they keep their promise, and incast."""
    table = incast_table(frame)
    return [*([table] if table.rows else []), *fidelity_tables(frame)]


def incast_table(frame: pd.DataFrame) -> TextTable:
    """Time over ideal, dropped and resent packets by length of the queue, the orders beside each other."""
    table, rows = incasts(frame), []
    for key, points in table.groupby(["devices", "rate_mbps", "size_bytes", "queue_kb"]):
        devices, rate, size, queue = cast(tuple[float, ...], key)
        cells = [cell for order in ORDERS for cell in _cells(points[points["pattern"] == order])]
        rows.append([f"{devices - 1:g} x {size / 1000:g} KB, {rate:g} Mbps", f"{queue:g}", *cells])
    columns = [name for words, *_ in ORDERS.values() for name in (words, "goodput", "lost")]
    notes = [
        "at once: all send as they like; in turn: each when the one before is done; times over that of the bytes alone",
        "KB: queue of the receiver's port; goodput: payload over time, of its rate",
        "lost: packets dropped at full queues / segments sent again, in all repeats of a point together",
    ]
    return TextTable("Incast: many devices send to one", ["messages", "KB", *columns], rows, notes)


def _cells(points: pd.DataFrame) -> list[str]:
    """What the table says of one point, if there is one."""
    if points.empty:
        return ["-"] * 3
    point = points.iloc[0]
    mark = DEGRADED if point["degraded"] else ""
    counts = ["-" if pd.isna(point[name]) else f"{point[name]:,.0f}" for name in ("drops", "retransmits")]
    return [f"{point['ratio']:.2f}{mark}", f"{point['goodput']:.0%}", " / ".join(counts)]


def cliffs(frame: pd.DataFrame) -> list[str]:
    """For each order, devices, rate and size the shortest queue from which on the receiver's link is well used."""
    sentences = []
    table = incasts(frame)
    for key, points in table.groupby(["devices", "rate_mbps", "size_bytes", "pattern"]):
        devices, rate, size, pattern = cast(tuple[Any, ...], key)
        worst = points.iloc[0]
        short = points[points["goodput"] < CLIFF]["queue_kb"].max()
        enough = points[points["queue_kb"] > short]["queue_kb"].min() if pd.notna(short) else points["queue_kb"].min()
        reached = (
            f"{CLIFF:.0%} of the rate from queues of {enough:g} KB on"
            if pd.notna(enough)
            else f"{CLIFF:.0%} of the rate with none of these queues"
        )
        sentences.append(
            f"{devices - 1:g} devices send {size:,.0f} B each to one at {rate:g} Mbps, {ORDERS[pattern][0]}: "
            f"{reached}; {worst['goodput']:.0%} with {worst['queue_kb']:g} KB, the shortest."
        )
    return sentences


def incast_figures(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """incast.png and incast.pdf: goodput against the length of the queue, a line for each order; or no files."""
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
        caption = f"Median over repeats, bars: fastest to slowest. {short_modes(frame)}."
        label_panels(figure, handles, bool(table["degraded"].any()), "goodput, of the receiver's rate", caption)
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
