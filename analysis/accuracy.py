"""What compression costs in quality: tables and figures of the accuracy experiments."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import pandas as pd

from analysis.cells import TextTable
from analysis.figures import STYLE, save
from analysis.words import joined, values

ORIGINAL, TRAINED = "original", "trained"
STAGES = {"k-means": ("#D55E00", "s", "--"), TRAINED: ("#0072B2", "o", "-")}
METRICS = {"accuracy_pct": "accuracy (%)", "perplexity": "perplexity"}
SETTINGS = {
    "groups": "G={:g}",
    "codebook_size": "K={:g}",
    "noise": "lambda={:g}",
    "commitment": "beta={:g}",
    "class_tokens": "{} class tokens",
    "objective": "{}",
    "trained_on": "trained on {}",
}
ALWAYS = ("groups", "codebook_size")


def results(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per (label, stage, devices): means over seeds.

    Columns: label, stage, devices, value, change, change_low, change_high, seeds, bits_per_token, compression, train_s.
    The interval is the bootstrap's over test examples, mean of the seeds; with several seeds at least as wide as the
    seeds lie apart.
    """
    rows = frame[frame["status"] == "ok"]
    named = [name for name in SETTINGS if name in ALWAYS or rows.loc[rows["stage"] == "trained", name].nunique() > 1]
    rows = rows.assign(label=[_label(row, named) for _, row in rows.iterrows()])
    grouped = rows.groupby(["label", "stage", "devices"], sort=False)
    table = grouped.agg(
        value=("value", "mean"),
        change=("change", "mean"),
        change_low=("change_low", "mean"),
        change_high=("change_high", "mean"),
        least=("change", "min"),
        most=("change", "max"),
        seeds=("seed", "nunique"),
        bits_per_token=("bits_per_token", "first"),
        compression=("compression", "first"),
        train_s=("train_s", "mean"),
    ).reset_index()
    table["change_low"] = table[["change_low", "least"]].min(axis=1)
    table["change_high"] = table[["change_high", "most"]].max(axis=1)
    return table.drop(columns=["least", "most"])


def accuracy_tables(frame: pd.DataFrame) -> list[TextTable]:
    """Quality on each number of devices, its change against the original, and what adapting cost."""
    table = results(frame)
    devices = sorted(table["devices"].unique())
    rows = []
    for (label, stage), of in table.groupby(["label", "stage"], sort=False):  # pyright: ignore[reportGeneralTypeIssues]
        cells = of.set_index("devices")
        texts = [_cell(cells.loc[count]) if count in cells.index else "-" for count in devices]
        first = of.iloc[0]
        cost = "-" if pd.isna(first["train_s"]) else f"{first['train_s'] / 60:.1f}"
        rows.append(
            [label or ORIGINAL, stage, f"{first['bits_per_token']:,.0f}", f"{first['compression']:,.0f}x", *texts, cost]
        )
    heads = [f"{count:g} device{'s' if count > 1 else ''}" for count in devices]
    columns = ["variant", "codebooks", "bits", "compression", *heads, "training, min"]
    notes = [
        "in brackets: change against the original on the same test examples, with its 95% interval",
        "bits: of a token and layer on the wire; compression: against fp32",
    ]
    on = f"{joined(frame, 'model')} on {joined(frame, 'data')}, {joined(frame, 'examples', '{} test examples')}"
    tables = [TextTable(f"{_metric(frame)}: {on}", columns, rows, notes, left=frozenset({"codebooks"}))]
    lost = frame[frame["status"] != "ok"]
    texts = [[str(row["stage"]), _label(row, list(SETTINGS)), str(row["error"])] for _, row in lost.iterrows()]
    tables.append(
        TextTable("Points without a result", ["stage", "variant", "why"], texts, left=frozenset({"variant", "why"}))
    )
    return [table for table in tables if table.rows]


def _label(row: pd.Series, names: list[str]) -> str:
    """The settings that a row's stage depends on."""
    if row["stage"] == ORIGINAL:
        return ""
    return " ".join(SETTINGS[name].format(row[name]) for name in names if row["stage"] == TRAINED or name in ALWAYS)


def _metric(frame: pd.DataFrame) -> str:
    return "/".join(METRICS.get(str(name), str(name)) for name in values(frame, "metric"))


def _cell(row: pd.Series) -> str:
    if row["stage"] == ORIGINAL:
        return f"{row['value']:.2f}"
    return f"{row['value']:.2f} ({row['change']:+.2f} [{row['change_low']:+.2f}, {row['change_high']:+.2f}])"


def accuracy_figures(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """quality.png: change against the original over bits a token, a panel for each number of devices from 2 up."""
    table = results(frame)
    devices = [count for count in sorted(table["devices"].unique()) if count > 1]
    if not devices or not set(table["stage"]) & set(STAGES):
        return []
    with plt.style.context(STYLE):
        figure, grid = plt.subplots(
            1, len(devices), figsize=(3.3 * len(devices) + 1.5, 3.6), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, count in zip(grid[0], devices, strict=True):
            for stage, (colour, marker, dash) in STAGES.items():
                points = table[(table["stage"] == stage) & (table["devices"] == count)].sort_values("bits_per_token")
                bars = [points["change"] - points["change_low"], points["change_high"] - points["change"]]
                style = {"color": colour, "marker": marker, "linestyle": dash, "capsize": 3, "label": stage}
                axes.errorbar(points["bits_per_token"], points["change"], yerr=bars, **style)
            axes.axhline(0, color="black", linewidth=1)
            axes.set_xscale("log")
            axes.set_xlabel("bits a token and layer")
            axes.set_title(f"{count:g} devices")
        grid[0][0].set_ylabel(f"change of {_metric(frame)}")
        grid[0][-1].legend(loc="lower right")
        caption = f"{joined(frame, 'model')} on {joined(frame, 'data')}; against the original; bars: 95% interval."
        figure.supxlabel(caption, fontsize=8, color="#444444", x=0.01, ha="left")
        return save(figure, out_dir / "quality")
