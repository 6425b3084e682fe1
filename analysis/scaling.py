"""How speed-up changes with the number of devices, and from which bandwidth on a method is worth it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.cells import DEGRADED, NOTES, TextTable
from analysis.figures import STYLE, condition_caption, save
from analysis.styles import line_styles
from analysis.tables import points
from testbed.rows import BASELINE

COLOURS = "cividis"  # even in grey and for any colour vision
NEVER, MIXED = "never", "*"


def parallel_points(frame: pd.DataFrame) -> pd.DataFrame:
    """The points of ``tables.points`` that several devices measured and that have a speed-up."""
    table = points(frame)
    return table[(table["method"] != BASELINE) & (table["speedup"] > 0) & (table["bandwidth_mbps"] > 0)]


def devices_plot(frame: pd.DataFrame, out_dir: Path, name: str = "devices") -> list[Path]:
    """Speed-up against the number of devices, a panel for the lowest, a middle and the highest bandwidth.

    Dashed line: as many times as fast as there are devices. Returns the files: none for fewer than two numbers of
    devices.
    """
    table = parallel_points(frame)
    counts = sorted(table["devices"].unique())
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
            axes.plot(counts, counts, color="#444444", linewidth=1, linestyle=(0, (6, 3)))
            axes.axhline(1, color="black", linewidth=1.2)
            for variant, rows in here.groupby("variant", sort=False):
                _line(axes, rows.sort_values("devices"), styles[str(variant)])
            axes.set_title(f"{bandwidth:g} Mbps")
            axes.set_xlabel("devices")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(counts, [f"{count:g}" for count in counts])
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(which="minor", length=0)
        grid[0][0].set_ylabel("speed-up over one device")
        handles = [Line2D([], [], **styles[variant], label=variant) for variant in table["variant"].drop_duplicates()]
        handles.append(
            Line2D([], [], color="#444444", linewidth=1, linestyle=(0, (6, 3)), label="N times on N devices")
        )
        handles.append(Line2D([], [], color="black", linewidth=1.2, label="one device"))
        if table["degraded"].any():
            hollow: dict[str, Any] = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "color": "#444444"}
            handles.append(Line2D([], [], **hollow, label="hollow: degraded"))
        figure.legend(handles=handles, loc="outside right center", handlelength=3.2)
        condition_caption(figure, frame, "Bars: slowest to fastest repeat.", 110)
        return save(figure, out_dir / name)


def _line(axes: Axes, rows: pd.DataFrame, style: dict[str, Any]) -> None:
    x, y = rows["devices"].to_numpy(), rows["speedup"].to_numpy()
    spread = np.array([y - rows["speedup_min"].to_numpy(), rows["speedup_max"].to_numpy() - y])
    axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=style["color"], elinewidth=1.2, capsize=3)
    axes.plot(x, y, color=style["color"], linestyle=style["linestyle"])
    for hollow in (False, True):
        which = rows["degraded"].to_numpy() == hollow
        face = "white" if hollow else style["color"]
        axes.plot(x[which], y[which], linestyle="", marker=style["marker"], color=style["color"], markerfacecolor=face)


def break_even(frame: pd.DataFrame) -> pd.DataFrame:
    """For each method variant and number of devices, from which measured bandwidth on it beats one device.

    Columns: variant, devices, wins_mbps (the lowest at which the median speed-up is above 1; missing: at none),
    loses_mbps (the next lower one that was measured; missing: there is none), highest_mbps (of those measured), mixed
    (at some higher one it loses again), degraded (one of the points that decide). Only variants with two bandwidths.
    """
    found = []
    for (variant, devices), rows in parallel_points(frame).groupby(["variant", "devices"], sort=False):  # pyright: ignore[reportGeneralTypeIssues]
        rows = rows.sort_values("bandwidth_mbps")
        if len(rows) < 2:
            continue
        wins = (rows["speedup"] > 1).to_numpy()
        first = int(wins.argmax()) if wins.any() else len(rows)
        deciding = rows.iloc[max(0, first - 1) : first + 1]
        found.append(
            {
                "variant": variant,
                "devices": devices,
                "wins_mbps": rows["bandwidth_mbps"].iloc[first] if wins.any() else np.nan,
                "loses_mbps": rows["bandwidth_mbps"].iloc[first - 1] if first else np.nan,
                "highest_mbps": rows["bandwidth_mbps"].iloc[-1],
                "mixed": bool((~wins[first:]).any()),
                "degraded": bool(deciding["degraded"].any()),
            }
        )
    columns = ["variant", "devices", "wins_mbps", "loses_mbps", "highest_mbps", "mixed", "degraded"]
    return pd.DataFrame(found, columns=columns)


def break_even_table(frame: pd.DataFrame) -> TextTable:
    """``break_even`` as text, a column for each number of devices."""
    table = break_even(frame)
    counts = sorted(table["devices"].unique())
    cells = {(row["variant"], row["devices"]): _cell(row) for _, row in table.iterrows()}
    variants = table["variant"].drop_duplicates()
    rows = [[variant, *(cells.get((variant, count), "-") for count in counts)] for variant in variants]
    texts = [text for row in rows for text in row[1:]]
    notes = ["20 to 50: slower than one device at 20 Mbps, faster at 50; bandwidths between them were not measured"]
    notes += [f"{MIXED} slower again at a higher bandwidth"] if any(MIXED in text for text in texts) else []
    notes += [NOTES[DEGRADED].partition(";")[0]] if any(DEGRADED in text for text in texts) else []
    heads = [f"{count:g} devices" for count in counts]
    return TextTable("Lowest bandwidth (Mbps) that beats one device", ["method", *heads], rows, notes)


def _cell(row: pd.Series) -> str:
    if pd.isna(row["wins_mbps"]):
        text = f"{NEVER} up to {row['highest_mbps']:g}"
    elif pd.isna(row["loses_mbps"]):
        text = f"{row['wins_mbps']:g} or less"
    else:
        text = f"{row['loses_mbps']:g} to {row['wins_mbps']:g}"
    return text + (MIXED if row["mixed"] else "") + (DEGRADED if row["degraded"] else "")


def break_even_map(frame: pd.DataFrame, out_dir: Path, name: str = "break_even") -> list[Path]:
    """``break_even`` as a heat map with its numbers in it; no files where no variant has two bandwidths."""
    table = break_even(frame)
    if table.empty:
        return []
    wide = table.pivot(index="variant", columns="devices", values="wins_mbps")
    wide = wide.reindex(table["variant"].drop_duplicates())
    texts = {(row["variant"], row["devices"]): _cell(row) for _, row in table.iterrows()}
    all_mbps = frame["bandwidth_mbps"].dropna()
    lowest, highest = all_mbps.min(), max(all_mbps.max(), 1.01 * all_mbps.min())
    white_above = lowest**0.45 * highest**0.55  # a little beyond the middle of the logarithmic scale
    colours = plt.get_cmap(COLOURS).reversed()
    with plt.style.context(STYLE):
        size = (2.6 + 1.7 * len(wide.columns), 1.5 + 0.42 * len(wide))
        figure, axes = plt.subplots(figsize=(max(6.4, size[0]), max(2.6, size[1])), layout="constrained")
        axes.patch.set(facecolor="white", edgecolor="#D0D0D0", hatch="////")  # shows where there is no colour
        picture = axes.pcolormesh(
            np.ma.masked_invalid(wide.to_numpy()),
            cmap=colours,
            norm=LogNorm(lowest, highest),
            edgecolors="white",
            linewidth=2,
        )
        for y, variant in enumerate(wide.index):
            for x, devices in enumerate(wide.columns):
                value = wide.loc[variant, devices]
                dark = value > white_above
                text = texts.get((variant, devices), "not measured")
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color="white" if dark else "black", size=9)
        axes.set_xticks(np.arange(len(wide.columns)) + 0.5, [f"{count:g} devices" for count in wide.columns])
        axes.set_yticks(np.arange(len(wide)) + 0.5, wide.index)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.suptitle("Lowest bandwidth (Mbps) that beats one device", x=0.01, ha="left", size=11, weight="bold")
        shown = np.unique(all_mbps)
        bar = figure.colorbar(picture, ax=axes, label="Mbps")
        bar.set_ticks(shown.tolist(), labels=[f"{mbps:g}" for mbps in shown])
        bar.minorticks_off()
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        text = f"Hatched: {NEVER} among the bandwidths measured."
        text += f" {DEGRADED} degraded." if table["degraded"].any() else ""
        text += f" {MIXED} slower again at a higher bandwidth." if table["mixed"].any() else ""
        condition_caption(figure, frame, text, 90)
        return save(figure, out_dir / name)
