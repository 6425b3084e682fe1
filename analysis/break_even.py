"""From which bandwidth on a method is worth it, for each number of devices and tokens."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm

from analysis.describe import MODEL, is_analytic
from analysis.latency import STYLE, condition_caption, save
from analysis.scaling import parallel_points
from analysis.text_table import DEGRADED, NOTES, TextTable, number

COLORS = "cividis"  # even in gray and for any color vision
NEVER, MIXED, ABOUT = "never", "*", "≈"


def break_even(frame: pd.DataFrame) -> pd.DataFrame:
    """For each method variant, number of devices and of tokens, from which bandwidth on it beats one device.

    Columns: variant, devices, tokens, wins_mbps (the lowest at which the median speed-up is above 1; missing: at none),
    loses_mbps (the next lower one that the rows have; missing: there is none), estimate_mbps (between both, where time
    is compute plus bits over bandwidth: one over the speed-up is a straight line over one over the bandwidth),
    highest_mbps (of those that the rows have), mixed (at some higher one it loses again), degraded (one of the points
    that decide). Only variants with two bandwidths.
    """
    found = []
    places = ["variant", "devices", "tokens"]
    for place, rows in parallel_points(frame).groupby(places, sort=False):
        rows = rows.sort_values("bandwidth_mbps")
        if len(rows) < 2:
            continue
        wins = (rows["speedup"] > 1).to_numpy()
        first = int(wins.argmax()) if wins.any() else len(rows)
        deciding = rows.iloc[max(0, first - 1) : first + 1]
        found.append(
            {
                **dict(zip(places, place, strict=True)),
                "wins_mbps": rows["bandwidth_mbps"].iloc[first] if wins.any() else np.nan,
                "loses_mbps": rows["bandwidth_mbps"].iloc[first - 1] if first else np.nan,
                "estimate_mbps": _crossing(deciding) if 0 < first < len(rows) else np.nan,
                "highest_mbps": rows["bandwidth_mbps"].iloc[-1],
                "mixed": bool((~wins[first:]).any()),
                "degraded": bool(deciding["degraded"].any()),
            }
        )
    columns = [*places, "wins_mbps", "loses_mbps", "estimate_mbps", "highest_mbps", "mixed", "degraded"]
    return pd.DataFrame(found, columns=pd.Index(columns))


def _crossing(deciding: pd.DataFrame) -> float:
    """The bandwidth at which the line through two points, a slower one first, has the time of one device."""
    (low_mbps, high_mbps), (slow, fast) = deciding["bandwidth_mbps"], 1 / deciding["speedup"]
    share = (1 - fast) / (slow - fast)  # of the way from the faster point to the slower
    return 1 / (1 / high_mbps + share * (1 / low_mbps - 1 / high_mbps))


def break_even_table(frame: pd.DataFrame) -> TextTable:
    """``break_even`` as text, a column for each number of devices, and of tokens where there are several."""
    table = break_even(frame)
    columns = _columns(table)
    cells = {(row["variant"], row["devices"], row["tokens"]): _cell(row) for _, row in table.iterrows()}
    variants = table["variant"].drop_duplicates()
    rows = [[variant, *(cells.get((variant, *place), "-") for place in columns)] for variant in variants]
    texts = [text for row in rows for text in row[1:]]
    notes = ["20 to 50: slower than one device at 20 Mbps, faster at 50; no bandwidth between them is in these rows"]
    if any(ABOUT in text for text in texts):
        notes.append(f"{ABOUT} between them, if time is compute plus bits over bandwidth")
    notes += [f"{MIXED} slower again at a higher bandwidth"] if any(MIXED in text for text in texts) else []
    notes += [NOTES[DEGRADED].partition(";")[0]] if any(DEGRADED in text for text in texts) else []
    return TextTable(_title(frame), ["method", *columns.values()], rows, notes)


def _title(frame: pd.DataFrame) -> str:
    how = MODEL if is_analytic(frame) else "measured"
    return f"Lowest bandwidth (Mbps) that beats one device, {how}"


def _columns(table: pd.DataFrame) -> dict[tuple[float, float], str]:
    """(devices, tokens) -> head, in order."""
    places = sorted({(row["devices"], row["tokens"]) for _, row in table.iterrows()})
    several = table["tokens"].nunique() > 1
    return {
        (devices, tokens): f"{devices:g} devices" + (f", {tokens:g} tokens" if several else "")
        for devices, tokens in places
    }


def _cell(row: pd.Series) -> str:
    if pd.isna(row["wins_mbps"]):
        text = f"{NEVER} up to {row['highest_mbps']:g}"
    elif pd.isna(row["loses_mbps"]):
        text = f"{row['wins_mbps']:g} or less"
    else:
        text = f"{row['loses_mbps']:g} to {row['wins_mbps']:g} ({ABOUT}{number(row['estimate_mbps'])})"
    return text + (MIXED if row["mixed"] else "") + (DEGRADED if row["degraded"] else "")


def break_even_map(frame: pd.DataFrame, out_dir: Path, name: str = "break_even") -> list[Path]:
    """``break_even`` as a heat map with its numbers in it; no files where no variant has two bandwidths.

    Colors are of the estimate; where all bandwidths win, of the lowest.
    """
    table = break_even(frame)
    if table.empty:
        return []
    columns, variants = _columns(table), table["variant"].drop_duplicates().tolist()
    texts = {(row["variant"], row["devices"], row["tokens"]): _cell(row) for _, row in table.iterrows()}
    table = table.assign(mbps=table["estimate_mbps"].fillna(table["wins_mbps"]))
    wide = table.pivot(index="variant", columns=["devices", "tokens"], values="mbps")
    wide = wide.reindex(index=variants, columns=pd.MultiIndex.from_tuples(list(columns)))
    all_mbps = frame["bandwidth_mbps"].dropna()
    lowest, highest = all_mbps.min(), max(all_mbps.max(), 1.01 * all_mbps.min())
    white_above = lowest**0.45 * highest**0.55  # a little beyond the middle of the logarithmic scale
    colors = plt.get_cmap(COLORS).reversed()
    with plt.style.context(STYLE):
        size = (2.6 + 1.7 * len(columns), 1.5 + 0.42 * len(variants))
        figure, axes = plt.subplots(figsize=(max(6.4, size[0]), max(2.6, size[1])), layout="constrained")
        axes.patch.set(facecolor="white", edgecolor="#D0D0D0", hatch="////")  # shows where there is no color
        values = np.ma.masked_invalid(wide.to_numpy(dtype=float))
        scale = LogNorm(lowest, highest)
        picture = axes.pcolormesh(values, cmap=colors, norm=scale, edgecolors="white", linewidth=2)
        for y, variant in enumerate(variants):
            for x, place in enumerate(columns):
                text = texts.get((variant, *place), "not among the rows").replace(" (", "\n(")
                color = "white" if wide.iloc[y, x] > white_above else "black"
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=color, size=8, linespacing=0.95)
        heads = [textwrap.fill(head, 14) for head in columns.values()]
        axes.set_xticks(np.arange(len(columns)) + 0.5, heads)
        axes.set_yticks(np.arange(len(variants)) + 0.5, variants)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.suptitle(_title(frame), x=0.01, ha="left", size=11, weight="bold")
        shown = np.unique(all_mbps)
        bar = figure.colorbar(picture, ax=axes, label="Mbps")
        bar.set_ticks(shown.tolist(), labels=[f"{mbps:g}" for mbps in shown])
        bar.minorticks_off()
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        text = f"Hatched: {NEVER} among these bandwidths."
        text += f" {DEGRADED} degraded." if table["degraded"].any() else ""
        text += f" {MIXED} slower again at a higher bandwidth." if table["mixed"].any() else ""
        condition_caption(figure, frame, text, 90)
        return save(figure, out_dir / name)
