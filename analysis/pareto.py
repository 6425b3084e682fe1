"""Quality against latency: which variants are on the Pareto front, where both were measured of the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from analysis.accuracy import TRAINED, UNCOMPRESSED
from analysis.describe import FLOAT_BITS, better_up, judged_on, metric
from analysis.latency import STYLE, condition_caption, save
from analysis.panels import HOLLOW
from analysis.points import points
from analysis.styles import line_styles
from analysis.text_table import DEGRADED, NOTES, TextTable, number
from testbed.results.schema import BASELINE

SAME = [
    "model",
    "hidden",
    "groups",
    "codebook_size",
    "num_quantizers",
    "pre_rotation",
    "devices",
]  # of a latency and a quality
# What tells apart several ways to make one variant.
WAYS = (
    "stage",
    "noise",
    "commitment",
    "gradient",
    "class_tokens",
    "objective",
    "trained_on",
    "quantized",
    "anchor_tokens",
)


def trade_offs(latency: pd.DataFrame, quality: pd.DataFrame) -> pd.DataFrame:
    """Each variant with its latency and its quality; empty where no model has both.

    latency: rows of one set of conditions; quality: rows of one accuracy experiment. Codebooks as trained, else as
    k-means gives them. Columns: label, bandwidth_mbps, devices, latency_ms, latency_min, latency_max, value, change,
    change_low, change_high, stage, degraded, on_front. The original is the point of one device.
    """
    table = points(latency)
    num_quantizers = table["settings"].str.extract(r"\bnum_quantizers=(\d+)", expand=False).astype(float).fillna(1.0)
    pre_rotation = table["settings"].str.extract(r"\bpre_rotation=(\w+)", expand=False).fillna("none")
    table = table.assign(num_quantizers=num_quantizers, pre_rotation=pre_rotation)
    single = table[table["method"] == BASELINE].assign(
        groups=0.0, codebook_size=0.0, num_quantizers=0.0, pre_rotation=""
    )
    astra = table[table["groups"] > 0]
    both = pd.concat([single, astra]).merge(_judged(quality), on=SAME)
    both = both.assign(on_front=False)
    if not (both["groups"] > 0).any():
        return both.iloc[:0]
    parts = [part.assign(on_front=_front(part)) for _, part in both.groupby("bandwidth_mbps")]
    return pd.concat(parts, ignore_index=True)


def _judged(quality: pd.DataFrame) -> pd.DataFrame:
    """Quality, mean over seeds, with the columns SAME; of several ways to make one variant, the best trained one.

    Tokens in int8 are judged in simulation only: no latency is of them.
    """
    rows = quality[(quality["status"] == "ok") & ~(quality["int8_tokens"] > 0)]
    coded = rows["groups"] > 0
    rows = rows.assign(
        num_quantizers=rows["num_quantizers"].where(coded, 0.0), pre_rotation=rows["pre_rotation"].where(coded, "")
    )
    rows = rows.assign(hidden=(rows["compression"] * rows["bits_per_token"] / FLOAT_BITS).round())
    ways = [name for name in WAYS if name in rows]
    means = rows.groupby([*SAME, *ways], dropna=False)[["value", "change", "change_low", "change_high"]].mean()
    means = means.reset_index()
    means = means.assign(adapted=means["stage"] == TRAINED, worth=means["value"] * better_up(quality))
    return means.sort_values(["adapted", "worth"]).groupby(SAME).tail(1)


def _front(part: pd.DataFrame) -> np.ndarray:
    """Which points no other one beats in both, bool [n]."""
    time, worth = part["latency_ms"].to_numpy(), part["worth"].to_numpy()
    no_worse = (time[None] <= time[:, None]) & (worth[None] >= worth[:, None])
    better = (time[None] < time[:, None]) | (worth[None] > worth[:, None])
    return ~(no_worse & better).any(axis=1)


def trade_off_table(table: pd.DataFrame, quality: pd.DataFrame) -> TextTable:
    """The points of ``trade_offs`` as text, the front marked."""
    rows = [
        [
            row["label"] if row["groups"] else UNCOMPRESSED,
            f"{row['devices']:g}",
            f"{row['bandwidth_mbps']:g}",
            number(row["latency_ms"]) + (DEGRADED if row["degraded"] else ""),
            f"{row['value']:.2f}",
            f"{row['change']:+.2f}" if row["groups"] else "-",
            row["stage"],
            "yes" if row["on_front"] else "",
        ]
        for _, row in table.iterrows()
    ]
    notes = ["on the front: no other point at this bandwidth is both faster and better"]
    notes += [NOTES[DEGRADED].partition(";")[0]] if table["degraded"].any() else []
    columns = ["variant", "devices", "Mbps", "latency, ms", metric(quality), "change", "codebooks", "on the front"]
    return TextTable("Latency and quality of the same model", columns, rows, notes, left=frozenset({"codebooks"}))


def trade_off_plot(table: pd.DataFrame, latency: pd.DataFrame, quality: pd.DataFrame, out_dir: Path) -> list[Path]:
    """pareto.png and .pdf: quality over latency, a panel for the lowest and for the highest bandwidth."""
    if table.empty:
        return []
    bandwidths = sorted({table["bandwidth_mbps"].min(), table["bandwidth_mbps"].max()})
    styles = line_styles(table)
    with plt.style.context(STYLE):
        figure, grid = plt.subplots(
            1,
            len(bandwidths),
            figsize=(4.2 * len(bandwidths) + 1.9, 4.2),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axes, bandwidth in zip(grid[0], bandwidths, strict=True):
            here = table[table["bandwidth_mbps"] == bandwidth]
            front = here[here["on_front"]].sort_values("latency_ms")
            axes.plot(front["latency_ms"], front["value"], color="#888888", linewidth=1, zorder=1)
            for _, row in here.iterrows():
                style = styles[row["label"]]
                unit = 1.0 if better_up(quality) > 0 else row["value"] / (100 + row["change"])  # % of the original's
                bars = {
                    "xerr": [[row["latency_ms"] - row["latency_min"]], [row["latency_max"] - row["latency_ms"]]],
                    "yerr": [
                        [unit * (row["change"] - row["change_low"])],
                        [unit * (row["change_high"] - row["change"])],
                    ],
                }
                face = "white" if row["degraded"] else style["color"]
                look: dict[str, Any] = {"color": style["color"], "marker": style["marker"], "markerfacecolor": face}
                axes.errorbar(row["latency_ms"], row["value"], **bars, **look, linestyle="", capsize=2, elinewidth=1)
            axes.set_title(f"{bandwidth:g} Mbps")
            axes.set_xlabel("latency (ms)")
        grid[0][0].set_ylabel(metric(quality))
        labels = table["label"].drop_duplicates()
        handles = [Line2D([], [], **{**styles[label], "linestyle": ""}, label=label) for label in labels]
        handles.append(Line2D([], [], color="#888888", linewidth=1, label="Pareto front"))
        if table["degraded"].any():
            handles.append(Line2D([], [], **HOLLOW, label="hollow: degraded"))
        figure.legend(handles=handles, loc="outside right center")
        text = f"Quality of {judged_on(quality)}; bars: fastest to slowest repeat, 95% interval of the change."
        condition_caption(figure, latency, text, 105)
        return save(figure, out_dir / "pareto")
