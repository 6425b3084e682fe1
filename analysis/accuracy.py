"""What compression costs in accuracy (images) or perplexity (text): tables and figures of the accuracy experiments."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.describe import METRICS, joined, values
from analysis.panels import STYLE, caption_below, save
from analysis.text_table import ONE, TextTable, marked
from testbed.results.intervals import MOST_DEGREES, seeds_interval, t_quantile
from testbed.results.schema import ACCURACY

UNCOMPRESSED, KMEANS, TRAINED = "uncompressed", "k-means", "trained"
MARKERS = {KMEANS: ("s", "--"), TRAINED: ("o", "-")}
DODGE = 1.04  # factor on the axis of bits between series of the same size, so that their bars do not overlap
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
UNITS = {"accuracy_pct": "points", "perplexity": "%"}  # of changes of each metric
# How labels write the settings of codebooks and of fine-tuning.
OF_CODEBOOKS = {
    "groups": "G={:g}",
    "codebook_size": "K={:g}",
    "num_quantizers": "num_quantizers={:g}",
    "pre_rotation": "pre_rotation {}",
    "int8_tokens": "{:g} int8 tokens",
    "quantized": "{}",
    "anchor_tokens": "{:g} anchor tokens",
    "class_tokens": "{} class tokens",
}
OF_TRAINING = {"noise": "lambda={:g}", "commitment": "beta={:g}", "gradient": "gradient {}", "objective": "{}"}
OF_TRAINING |= {"trained_on": "fine-tuned on {} devices"}
SETTINGS = OF_CODEBOOKS | OF_TRAINING
# Where a run has several values of a setting, sentences are about this one. These are the defaults of
# conf/runner/accuracy_*.yaml and as in the paper, and so were fixed before anything was measured.
FIXED: dict[str, Any] = {
    **{"num_quantizers": 1, "pre_rotation": "none", "int8_tokens": 0, "quantized": "residual", "anchor_tokens": 0},
    **{"class_tokens": "distributed", "noise": 0.0, "commitment": 0.0002, "gradient": "straight_through"},
    **{"objective": "labels", "trained_on": "4"},
}
ALWAYS = ("groups", "codebook_size", "quantized")  # named even if there is one value
EXAMPLES = {"accuracy_pct": "{} test examples", "perplexity": "{} windows"}


def results(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each label, stage, corpus and number of devices: means over seeds.

    Columns: label, series (the label without G, or without K if there is one G: a figure shows it as bits), stage,
    corpus, devices, value (accuracy in % or perplexity), change (from the uncompressed baseline, in points or in %),
    change_low and change_high (95% interval: over seeds and examples, or over the examples alone if there is one seed),
    seeds, bits_per_token, compression, train_s.
    """
    rows = frame[frame["status"] == "ok"]
    several = [name for name in SETTINGS if _kinds(rows, name) > 1]
    compressed = rows[rows["stage"] != UNCOMPRESSED]
    named = [name for name in SETTINGS if name in ALWAYS or name in several or _unusual(compressed, name)]
    apart = [name for name in several if name != ("groups" if "groups" in several else "codebook_size")]
    rows = rows.assign(
        label=[_label(row, named) for _, row in rows.iterrows()],
        series=[_label(row, apart) for _, row in rows.iterrows()],
    )
    grouped = rows.groupby(["label", "series", "stage", "corpus", "devices"], sort=False)
    table = grouped.agg(
        value=("value", "mean"),
        change=("change", "mean"),
        seeds=("seed", "nunique"),
        bits_per_token=("bits_per_token", "first"),
        compression=("compression", "first"),
        train_s=("train_s", "mean"),
    )
    intervals = [_interval(of) for _, of in grouped]
    table = table.assign(change_low=[low for low, _ in intervals], change_high=[high for _, high in intervals])
    return table.reset_index()


def _interval(rows: pd.DataFrame) -> tuple[float, float]:
    """The 95% interval of the mean change of rows that differ in the seed only (``seeds_interval``)."""
    low, high = rows["change_low"], rows["change_high"]
    if rows["seed"].nunique() < 2 or rows[["change", "change_low", "change_high"]].isna().any(axis=None):
        return float(low.mean()), float(high.mean())
    examples = float(rows["examples"].min()) if rows["examples"].notna().all() else MOST_DEGREES
    errors = (high - low) / (2 * t_quantile(max(1.0, examples - 1)))
    return seeds_interval(rows["change"].tolist(), errors.tolist(), examples)


def fixed_variants(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that sentences are about, chosen without a look at any result; all seeds, groups and codebook sizes.

    Of each setting that has one value in the rows, that one; of each other setting the value in FIXED, or if no row has
    it, the first in order.
    """
    chosen = pd.Series(True, index=frame.index)
    for name, value in FIXED.items():
        if name not in frame:
            continue
        depend = frame["stage"].eq(TRAINED) if name in OF_TRAINING else frame["stage"].ne(UNCOMPRESSED)
        found = sorted(set(frame.loc[depend, name].dropna()) - {""})
        if len(found) > 1:
            chosen &= ~depend | (frame[name] == (value if value in found else found[0]))
    return frame[chosen]


def accuracy_tables(frame: pd.DataFrame) -> list[TextTable]:
    """Accuracy or perplexity for each corpus and number of devices, and a table of points without a result.

    Columns: variant, codebooks (stage), bits per token and layer, one column for each corpus and number of devices with
    value, change and 95% interval, and minutes of training if the rows have any.
    """
    table = results(frame)
    columns, metric = _columns(table), _metric(frame)
    trained = bool(table["train_s"].notna().any())
    rows = []
    for (label, stage), of in table.groupby(["label", "stage"], sort=False):  # pyright: ignore[reportGeneralTypeIssues]
        first = of.iloc[0]
        cells = [
            _cell(_at(of, corpus, None if stage == UNCOMPRESSED else devices), metric) for corpus, devices in columns
        ]
        bits = f"{first['bits_per_token']:,.1f}".removesuffix(".0") + f" ({first['compression']:,.0f}x)"
        bits = "-" if first[["bits_per_token", "compression"]].isna().any() else bits
        cost = "-" if pd.isna(first["train_s"]) else f"{first['train_s'] / 60:.1f}"
        rows.append([label or UNCOMPRESSED, stage, bits, *cells, *([cost] * trained)])
    name, unit = METRICS.get(metric, metric), UNITS.get(metric, "")
    notes = [
        f"each cell: {name}, change from the uncompressed baseline on the same examples in {unit}, 95% interval of it "
        "over seeds and examples",
        "uncompressed: measured on one device, so all columns show the same value",
        "bits: sent for each token and layer; in brackets: compression against embeddings in fp32",
    ]
    if any(cell.endswith(ONE) for row in rows for cell in row[3:]):
        notes.append(f"{ONE} one seed: the interval is over the examples of one model; another seed may lie outside it")
    examples = joined(frame, "examples", EXAMPLES.get(metric, "{} examples"))
    counts = sorted({devices for _, devices in columns})
    one = (
        f", {_heading('', counts[0])}" if len(counts) == 1 and columns[0][0] else ""
    )  # otherwise in the column headings
    title = f"{name}: {joined(frame, 'model')} on {joined(frame, 'data')}, {examples}{one}"
    headings = [
        "variant",
        "codebooks",
        "bits",
        *(_heading(corpus, 0 if one else devices) for corpus, devices in columns),
    ]
    headings += ["training, min"] * trained
    tables = [TextTable(title, headings, rows, notes, left=frozenset({"codebooks"}))]
    lost = frame[frame["status"] != "ok"]
    texts = [[str(row["stage"]), _label(row, list(SETTINGS)), str(row["error"])] for _, row in lost.iterrows()]
    tables.append(
        TextTable("Points without a result", ["stage", "variant", "error"], texts, left=frozenset({"variant", "error"}))
    )
    return [table for table in tables if table.rows]


def accuracy_figures(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Change from the uncompressed baseline over bits per token, a panel for each corpus and number of devices above 1.

    Writes quality.png and quality.pdf to ``out_dir``. Returns these files; none if no row is compressed.
    """
    table = results(frame)
    shown = table["stage"].isin(list(MARKERS)) & (table["devices"] > 1)
    table = table[shown & (table["bits_per_token"] > 0) & table["change"].notna()]
    if table.empty:
        return []
    panels = _columns(table)
    lines = sorted(set(zip(table["stage"], table["series"], strict=True)))
    colors = dict(zip(lines, cycle(COLORS), strict=False))
    with plt.style.context(STYLE):
        size = (3.3 * len(panels) + 1.5, 3.6)
        shared: dict[str, Any] = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
        figure, grid = plt.subplots(1, len(panels), figsize=size, **shared)
        for axes, (corpus, devices) in zip(grid[0], panels, strict=True):
            _lines(axes, table[(table["corpus"] == corpus) & (table["devices"] == devices)], colors)
            axes.set_title(_heading(corpus, devices))
        grid[0][0].set_xlim(table["bits_per_token"].min() / 2, table["bits_per_token"].max() * 2)
        name, unit = METRICS.get(_metric(frame), _metric(frame)), UNITS.get(_metric(frame), "")
        grid[0][0].set_ylabel(f"change of {name.removesuffix(' (%)')} ({unit})")
        grid[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        caption = f"{joined(frame, 'model')} on {joined(frame, 'data')}. Change from the uncompressed baseline; "
        caption += "bars: 95% interval."
        if len(lines) > 1:
            caption += "\nPoints with the same number of bits are drawn side by side."
        caption_below(figure, caption)
        return save(figure, out_dir / "quality")


def _lines(axes: Axes, table: pd.DataFrame, colors: dict[tuple[str, str], str]) -> None:
    """The lines of a panel, one for each stage and series. Points with the same bits are moved apart a little."""
    for number, ((stage, series), color) in enumerate(colors.items()):
        points = table[(table["stage"] == stage) & (table["series"] == series)]
        points = points.sort_values("bits_per_token")
        marker, dash = MARKERS[stage]
        bars = [points["change"] - points["change_low"], points["change_high"] - points["change"]]
        style = {"color": color, "marker": marker, "linestyle": dash, "capsize": 3}
        label = ", ".join(filter(None, [series, stage]))
        dodge = DODGE ** (number - (len(colors) - 1) / 2)
        axes.errorbar(dodge * points["bits_per_token"], points["change"], yerr=bars, label=label, **style)
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: f"{bits:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bits per token and layer")


def _kinds(rows: pd.DataFrame, name: str) -> int:
    """How many values a setting has among the rows that depend on it."""
    depend = rows["stage"] == TRAINED if name in OF_TRAINING else rows["stage"] != UNCOMPRESSED
    return rows.loc[depend, name].nunique()


def _unusual(compressed: pd.DataFrame, name: str) -> bool:
    """Whether a setting that was added later has another value than the only one that older rows could have."""
    choices = ACCURACY.only_choices
    return name in choices and not compressed[name].isin([choices[name], ""]).all()


def _label(row: pd.Series, names: list[str]) -> str:
    """The settings that a row's stage depends on."""
    if row["stage"] == UNCOMPRESSED:
        return ""
    stated = [name for name in names if name in OF_CODEBOOKS or row["stage"] == TRAINED]
    return " ".join(SETTINGS[name].format(row[name]) for name in stated if row[name] != "")


def _columns(table: pd.DataFrame) -> list[tuple[str, float]]:
    """(corpus, devices) of compressed rows, in the order of the corpora; of the baseline if there are no others."""
    compressed = table[table["stage"] != UNCOMPRESSED]
    pairs = (table if compressed.empty else compressed)[["corpus", "devices"]].drop_duplicates()
    order = {corpus: rank for rank, corpus in enumerate(table["corpus"].unique())}
    return sorted(pairs.itertuples(index=False, name=None), key=lambda pair: (order[pair[0]], pair[1]))


def _heading(corpus: str, devices: float) -> str:
    """The heading of a column or panel. devices: 0 if the title names them."""
    count = f"{devices:g} device{'s' if devices > 1 else ''}" if devices else ""
    return ", ".join(filter(None, [corpus, count]))


def _at(table: pd.DataFrame, corpus: str, devices: float | None) -> pd.Series | None:
    """The row of a corpus and a number of devices, or None. devices: None takes any number."""
    found = table[(table["corpus"] == corpus) & ((table["devices"] == devices) | (devices is None))]
    return None if found.empty else found.iloc[0]


def _cell(row: pd.Series | None, metric: str) -> str:
    if row is None:
        return "-"
    if row["stage"] == UNCOMPRESSED:
        return f"{row['value']:.2f}"
    digits = 1 if metric == "perplexity" else 2
    low, high = (f"{row[end]:+.{digits}f}" for end in ("change_low", "change_high"))
    return marked(f"{row['value']:.2f} {row['change']:+.{digits}f} [{low}, {high}]", False, row["seeds"] < 2)


def _metric(frame: pd.DataFrame) -> str:
    return "/".join(map(str, values(frame, "metric")))
