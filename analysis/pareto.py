"""Model quality (accuracy or perplexity) against latency: which variants of a model are on the Pareto front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from analysis.accuracy import FIXED, TRAINED, UNCOMPRESSED
from analysis.describe import FLOAT_BITS, evaluated_on, metric, metric_sign
from analysis.panels import HOLLOW, STYLE, condition_caption, save
from analysis.points import points
from analysis.styles import line_styles
from analysis.text_table import DEGRADED_NOTE, TextTable, mark_notes, marked, number
from testbed.results.schema import BASELINE

# Columns in which rows of latency and of quality must agree to be of one variant.
SHARED = ["model", "hidden", "groups", "codebook_size", "num_quantizers", "pre_rotation", "devices"]
# Columns in which several rows of quality of one variant differ.
TRAINED_BY = (
    *("stage", "noise", "commitment", "gradient", "class_tokens", "objective", "trained_on", "quantized"),
    "anchor_tokens",
)


def trade_offs(latency: pd.DataFrame, quality: pd.DataFrame) -> pd.DataFrame:
    """Each variant with its latency and its accuracy or perplexity; empty if no model has both.

    latency: rows of a latency experiment under one set of conditions. quality: rows of an accuracy experiment.
    Fine-tuned codebooks are taken if there are any, else codebooks from k-means. Columns: those of ``points``, and
    value, change, change_low, change_high (see ``analysis.accuracy.results``), stage, worth (higher is better),
    on_front (bool), front_degraded (bool: the point is degraded, or a degraded point alone keeps it from the front).
    The uncompressed baseline is the point of one device.
    """
    table = points(latency)
    num_quantizers = table["settings"].str.extract(r"\bnum_quantizers=(\d+)", expand=False).astype(float).fillna(1.0)
    pre_rotation = table["settings"].str.extract(r"\bpre_rotation=(\w+)", expand=False).fillna("none")
    table = table.assign(num_quantizers=num_quantizers, pre_rotation=pre_rotation)
    single = table[table["method"] == BASELINE].assign(
        groups=0.0, codebook_size=0.0, num_quantizers=0.0, pre_rotation=""
    )
    astra = table[table["groups"] > 0]
    both = pd.concat([single, astra]).merge(_evaluated(quality), on=SHARED)
    both = both.assign(on_front=False, front_degraded=False)
    if not (both["groups"] > 0).any():
        return both.iloc[:0]
    parts = [_with_front(part) for _, part in both.groupby("bandwidth_mbps", dropna=False)]
    return pd.concat(parts, ignore_index=True)


def _with_front(part: pd.DataFrame) -> pd.DataFrame:
    """The points of one bandwidth with on_front and front_degraded."""
    on_front, degraded = _front(part), part["degraded"].to_numpy(bool)
    of_sound = np.ones(len(part), dtype=bool)
    of_sound[~degraded] = _front(part[~degraded])
    return part.assign(on_front=on_front, front_degraded=degraded | (on_front != of_sound))


def _evaluated(quality: pd.DataFrame) -> pd.DataFrame:
    """Value and change with the columns SHARED, mean over seeds.

    Of several ones of a variant, the fine-tuned ones are taken if there are any, and of these the one with the most
    settings of FIXED. No choice depends on a result. Rows with int8 tokens are left out: they exist in simulation only,
    without a latency.
    """
    rows = quality[(quality["status"] == "ok") & ~(quality["int8_tokens"] > 0)]
    compressed = rows["groups"] > 0
    rows = rows.assign(
        num_quantizers=rows["num_quantizers"].where(compressed, 0.0),
        pre_rotation=rows["pre_rotation"].where(compressed, ""),
    )
    rows = rows.assign(hidden=(rows["compression"] * rows["bits_per_token"] / FLOAT_BITS).round())
    trained_by = [name for name in TRAINED_BY if name in rows]
    means = rows.groupby([*SHARED, *trained_by], dropna=False)[["value", "change", "change_low", "change_high"]].mean()
    means = means.reset_index()
    as_fixed = sum(means[name].eq(value).astype(int) for name, value in FIXED.items() if name in trained_by)
    means = means.assign(fine_tuned=means["stage"] == TRAINED, as_fixed=as_fixed)
    means = means.assign(worth=means["value"] * metric_sign(quality))
    return means.sort_values(["fine_tuned", "as_fixed", *trained_by]).groupby(SHARED).tail(1)


def _front(part: pd.DataFrame) -> np.ndarray:
    """Which points no other point dominates, bool [n]."""
    time, worth = part["latency_ms"].to_numpy(), part["worth"].to_numpy()
    no_worse = (time[None] <= time[:, None]) & (worth[None] >= worth[:, None])
    better = (time[None] < time[:, None]) | (worth[None] > worth[:, None])
    return ~(no_worse & better).any(axis=1)


def trade_off_table(table: pd.DataFrame, quality: pd.DataFrame) -> TextTable:
    """``trade_offs`` as text, with the points on the Pareto front marked."""
    rows = [
        [
            row["label"] if row["groups"] else UNCOMPRESSED,
            f"{row['devices']:g}",
            f"{row['bandwidth_mbps']:g}",
            marked(number(row["latency_ms"]), row["degraded"], row["one"]),
            f"{row['value']:.2f}",
            f"{row['change']:+.2f}" if row["groups"] else "-",
            row["stage"],
            marked("yes" if row["on_front"] else "no" if row["front_degraded"] else "", row["front_degraded"]),
        ]
        for _, row in table.iterrows()
    ]
    notes = ["Pareto front: no other point at this bandwidth is both faster and better"]
    degraded = f"{DEGRADED_NOTE}; behind yes or no: a degraded point decides it"
    notes += mark_notes((cell for row in rows for cell in (row[3], row[-1])), degraded)
    columns = ["variant", "devices", "Mbps", "latency, ms", metric(quality), "change", "codebooks", "Pareto front"]
    return TextTable(
        f"Latency and {metric(quality)} of the same model", columns, rows, notes, left=frozenset({"codebooks"})
    )


def trade_off_plot(table: pd.DataFrame, latency: pd.DataFrame, quality: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Accuracy or perplexity over latency, a panel for the lowest and one for the highest bandwidth.

    table: ``trade_offs(latency, quality)``. Writes pareto.png and pareto.pdf to ``out_dir``. Returns these files; none
    if the table is empty.
    """
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
                unit = 1.0 if metric_sign(quality) > 0 else row["value"] / (100 + row["change"])  # % of the baseline
                bars = {
                    "xerr": [[row["latency_ms"] - row["latency_min"]], [row["latency_max"] - row["latency_ms"]]],
                    "yerr": [  # no bar where a foreign file has no interval, or one without the value
                        [max(0.0, unit * (row["change"] - row["change_low"]))],
                        [max(0.0, unit * (row["change_high"] - row["change"]))],
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
        text = f"{evaluated_on(quality)}; bars: fastest to slowest repeat, 95% interval of the change."
        condition_caption(figure, latency, text, 105)
        return save(figure, out_dir / "pareto")
