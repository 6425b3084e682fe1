"""Break-even bandwidth: the lowest bandwidth at which a method is faster than one device.

Degraded speed-ups decide nothing here. They are left out, and a cell says so.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm

from analysis.describe import MODEL, is_analytic
from analysis.panels import STYLE, condition_caption, save
from analysis.scaling import parallel_points
from analysis.text_table import DEGRADED, ONE, ONE_NOTE, TextTable, marked, number

COLORS = "cividis"  # even steps in gray and for any color vision
NEVER, AT_ALL, ABOUT, MIXED, UNKNOWN = "never", "or less", "≈", "*", "not known"
MBPS = ("wins_mbps", "loses_mbps", "estimate_mbps", "highest_mbps")
# Mark in a cell -> note below the table.
NOTES = {
    NEVER: f"for example, {NEVER} up to 500: slower than one device at all bandwidths that were run, at most 500 Mbps",
    AT_ALL: f"for example, 10 {AT_ALL}: faster than one device at 10 Mbps, the lowest bandwidth that was run",
    ABOUT: f"for example, 20 to 50 ({ABOUT}30): slower than one device at 20 Mbps, faster at 50 Mbps, and no bandwidth "
    f"between these was run; {ABOUT} is an estimate, if time is computation plus bits over bandwidth",
    MIXED: f"{MIXED} slower than one device again at a higher bandwidth",
    ONE: ONE_NOTE,
    DEGRADED: f"{DEGRADED} left out here: bandwidths at which the point, or one device, has degraded fidelity",
    UNKNOWN: f"{UNKNOWN}: fewer than two bandwidths are left",
}


def break_even(frame: pd.DataFrame) -> pd.DataFrame:
    """The break-even bandwidth of each method variant, for each number of devices and of tokens.

    Columns: variant, devices, tokens, wins_mbps (lowest bandwidth with a median speed-up above 1; missing if there is
    none), loses_mbps (next lower bandwidth; missing if there is none), estimate_mbps (between these two: if time is
    computation plus bits over bandwidth, 1 / speed-up is linear in 1 / bandwidth), highest_mbps (missing if fewer than
    two bandwidths are left, and then so are the others), mixed (slower than one device again at a higher bandwidth),
    degraded (some bandwidths are left out, because the speed-up there is degraded), one (one of the two speed-ups that
    decide rests on one repeat). Variants with one bandwidth are left out.
    """
    found = []
    places = ["variant", "devices", "tokens"]
    for place, rows in parallel_points(frame).groupby(places, sort=False):
        if len(rows) < 2:
            continue
        known = dict(zip(places, place, strict=True)) | {"degraded": bool(rows["speedup_degraded"].any())}
        rows = rows[~rows["speedup_degraded"]].sort_values("bandwidth_mbps")
        if len(rows) < 2:
            found.append(known | dict.fromkeys(MBPS, np.nan) | {"mixed": False, "one": False})
            continue
        wins = (rows["speedup"] > 1).to_numpy()
        first = int(wins.argmax()) if wins.any() else len(rows)
        deciding = rows.iloc[max(0, first - 1) : first + 1]
        found.append(
            {
                **known,
                "wins_mbps": rows["bandwidth_mbps"].iloc[first] if wins.any() else np.nan,
                "loses_mbps": rows["bandwidth_mbps"].iloc[first - 1] if first else np.nan,
                "estimate_mbps": _crossing(deciding) if 0 < first < len(rows) else np.nan,
                "highest_mbps": rows["bandwidth_mbps"].iloc[-1],
                "mixed": bool((~wins[first:]).any()),
                "one": bool(deciding["speedup_one"].any()),
            }
        )
    columns = [*places, *MBPS, "mixed", "degraded", "one"]
    return pd.DataFrame(found, columns=pd.Index(columns))


def _crossing(deciding: pd.DataFrame) -> float:
    """Bandwidth in Mbps at which the line through two points, the slower one first, reaches the time of one device."""
    (low_mbps, high_mbps), (slow, fast) = deciding["bandwidth_mbps"], 1 / deciding["speedup"]
    fraction = (1 - fast) / (slow - fast)  # of the way from the faster point to the slower one
    return 1 / (1 / high_mbps + fraction * (1 / low_mbps - 1 / high_mbps))


def break_even_table(frame: pd.DataFrame) -> TextTable:
    """``break_even`` as text: one row for each variant, one column for each number of devices and of tokens."""
    table = break_even(frame)
    columns = _columns(table)
    cells = {(row["variant"], row["devices"], row["tokens"]): _cell(row) for _, row in table.iterrows()}
    variants = table["variant"].drop_duplicates()
    rows = [[variant, *(cells.get((variant, *place), "-") for place in columns)] for variant in variants]
    notes = [note for mark, note in NOTES.items() if any(mark in cell for row in rows for cell in row[1:])]
    return TextTable(_title(frame), ["method", *columns.values()], rows, notes)


def _title(frame: pd.DataFrame) -> str:
    how = MODEL if is_analytic(frame) else "measured"
    return f"Lowest bandwidth (Mbps) that beats one device, {how}"


def _columns(table: pd.DataFrame) -> dict[tuple[float, float], str]:
    """(devices, tokens) -> heading, in order."""
    places = sorted({(row["devices"], row["tokens"]) for _, row in table.iterrows()})
    several = table["tokens"].nunique() > 1
    return {
        (devices, tokens): f"{devices:g} devices" + (f", {tokens:g} tokens" if several else "")
        for devices, tokens in places
    }


def _cell(row: pd.Series) -> str:
    if pd.isna(row["highest_mbps"]):
        text = UNKNOWN
    elif pd.isna(row["wins_mbps"]):
        text = f"{NEVER} up to {row['highest_mbps']:g}"
    elif pd.isna(row["loses_mbps"]):
        text = f"{row['wins_mbps']:g} {AT_ALL}"
    else:
        text = f"{row['loses_mbps']:g} to {row['wins_mbps']:g} ({ABOUT}{number(row['estimate_mbps'])})"
    return marked(text + (MIXED if row["mixed"] else ""), row["degraded"], row["one"])


def break_even_map(frame: pd.DataFrame, out_dir: Path, name: str = "break_even") -> list[Path]:
    """``break_even`` as a heat map with the numbers in its cells.

    The color shows the estimate, or the lowest bandwidth if the method is faster at all of them. Writes name.png and
    name.pdf to ``out_dir``. Returns these files; none if no variant has two bandwidths.
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
    white_above = lowest**0.45 * highest**0.55  # a little above the middle of the logarithmic scale
    colors = plt.get_cmap(COLORS).reversed()
    with plt.style.context(STYLE):
        size = (2.6 + 1.7 * len(columns), 1.5 + 0.42 * len(variants))
        figure, axes = plt.subplots(figsize=(max(6.4, size[0]), max(2.6, size[1])), layout="constrained")
        axes.patch.set(facecolor="white", edgecolor="#D0D0D0", hatch="////")  # visible in cells without a color
        values = np.ma.masked_invalid(wide.to_numpy(dtype=float))
        scale = LogNorm(lowest, highest)
        mesh = axes.pcolormesh(values, cmap=colors, norm=scale, edgecolors="white", linewidth=2)
        for y, variant in enumerate(variants):
            for x, place in enumerate(columns):
                text = texts.get((variant, *place), "not run").replace(" (", "\n(")
                color = "white" if wide.iloc[y, x] > white_above else "black"
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=color, size=8, linespacing=0.95)
        headings = [textwrap.fill(heading, 14) for heading in columns.values()]
        axes.set_xticks(np.arange(len(columns)) + 0.5, headings)
        axes.set_yticks(np.arange(len(variants)) + 0.5, variants)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.suptitle(_title(frame), x=0.01, ha="left", size=11, weight="bold")
        shown = np.unique(all_mbps)
        bar = figure.colorbar(mesh, ax=axes, label="Mbps")
        bar.set_ticks(shown.tolist(), labels=[f"{mbps:g}" for mbps in shown])
        bar.minorticks_off()
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        text = f"Hatched: {NEVER} faster than one device at these bandwidths, or {UNKNOWN}."
        text += f" {ONE} one repeat." if table["one"].any() else ""
        text += f" {DEGRADED} without degraded bandwidths." if table["degraded"].any() else ""
        text += f" {MIXED} slower than one device again at a higher bandwidth." if table["mixed"].any() else ""
        condition_caption(figure, frame, text, 90)
        return save(figure, out_dir / name)
