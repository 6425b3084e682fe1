"""Accuracies and perplexities of the paper beside ours.

Models and data differ, so the changes from the uncompressed baseline are compared, not the values.
"""

from __future__ import annotations

import re
from operator import itemgetter
from typing import Any

import pandas as pd

from analysis.accuracy import TRAINED, UNCOMPRESSED
from analysis.describe import data_of, joined, sizes_of
from analysis.paper.latency import PAPER_SETTING, reported_figures

METRICS = {"accuracy": "accuracy_pct", "perplexity": "perplexity"}  # the paper's name -> ours
CODEWORDS = PAPER_SETTING["codebook_size"]
# The variant of the paper, in the columns of our rows; then the words for a variant with other values.
PAPER_VARIANT = {
    "class_tokens": "distributed",
    "objective": "labels",
    "trained_on": "4",
    "quantized": "residual",
    "anchor_tokens": 0,
    "num_quantizers": 1,
    "pre_rotation": "none",
    "int8_tokens": 0,
    "gradient": "straight_through",
}
DIFFERENCES = {
    "class_tokens": "{} class token",
    "objective": "objective {}",
    "trained_on": "fine-tuned on {} devices",
    "quantized": "{} quantized",
    "anchor_tokens": "{:g} anchor tokens",
    "num_quantizers": "{:g} residual VQ stages",
    "pre_rotation": "pre-rotation {}",
    "int8_tokens": "{:g} int8 tokens of each device",
    "gradient": "gradient {}",
}
UNITS = {"x": "x", "%": "%", "ppl": ""}
PARAMETERS = {"lambda": "noise", "beta": "commitment"}
COMMITMENTS = (1e-4, 5e-4)  # lowest and highest weight that the paper trains with
DISTANCE = ["not_fine_tuned", "codewords", "differences"]  # from the paper's variant, the most important one first
ZERO_SHOT = "zero-shot"  # in a task of the paper: evaluated on another text than the one of the codebooks


def quality_beside(frames: list[pd.DataFrame], figure: pd.Series) -> list[list[str]]:
    """[paper, ours, difference, interval, why] for a result of the paper, once for each model and data set of ours.

    frames: rows of accuracy experiments, one frame a run, the oldest first. A variant and its uncompressed baseline are
    of one run. Of several runs the one is taken that varies the parameter which the paper varies; then the one most
    like the paper; then the latest.
    """
    found: dict[Any, tuple[tuple[Any, ...], list[str]]] = {}
    for rows in frames:
        rows = rows[(rows["status"] == "ok") & (rows["metric"] == METRICS[figure["metric"]])]
        rows = rows[rows["model"].map(family) == family(figure["model"])]
        for name, of in rows.groupby(["model", "data", "corpus"], sort=False):
            if _is_zero_shot(of) == (ZERO_SHOT in figure["task"]) and (beside := _beside(of, figure)) is not None:
                found[name] = min(beside, found.get(name, beside), key=itemgetter(0))
    return [cells for _, cells in found.values()]


def _beside(of: pd.DataFrame, figure: pd.Series) -> tuple[tuple[Any, ...], list[str]] | None:
    """(distance from the paper's variant, cells) for one model and data set; None if nothing is comparable."""
    baseline = of[of["stage"] == UNCOMPRESSED]["value"].mean()
    model, data = joined(of, "model"), data_of(of)
    other = [f"model {model} ({sizes_of(of)})"] if plain(model) != plain(figure["model"]) else []
    other += [f"data {data}"] if plain(data) != plain(figure["task"]) else []
    if figure["method"] == "single" and pd.notna(baseline) and not other:  # else it is a value of another model
        return (), _absolute(figure, baseline)
    if figure["method"] != "astra" or (ours := _like_the_papers(of, figure)) is None:
        return None
    parameters = [name for symbol, name in PARAMETERS.items() if f"{symbol}=" in str(figure["setting"])]
    trained = of[of["stage"] == TRAINED]
    alone = any(trained[name].nunique() < 2 for name in parameters)  # no other value of it to compare with
    return (alone, *ours[DISTANCE]), _change(figure, ours, baseline, other)


def _is_zero_shot(rows: pd.DataFrame) -> bool:
    """Whether a language model is evaluated on another text than the one that its codebooks are from."""
    return bool(joined(rows, "corpus")) and joined(rows, "corpus") != joined(rows, "data")


def _like_the_papers(rows: pd.DataFrame, figure: pd.Series) -> pd.Series | None:
    """Our variant that is most like the paper's, mean over seeds; None if none has its groups and parameters.

    Fine-tuned variants come before codebooks from k-means alone.
    """
    rows = rows[(rows["stage"] != UNCOMPRESSED) & (rows["devices"] == figure["devices"])]
    if pd.notna(figure["groups"]):
        rows = rows[rows["groups"] == figure["groups"]]
    for symbol, name in PARAMETERS.items():
        if found := re.search(rf"\b{symbol}=([\d.]+)", str(figure["setting"])):
            rows = rows[(rows[name] == float(found[1])) & (rows["stage"] == TRAINED)]
    if rows.empty:
        return None
    of_paper = {name: value for name, value in PAPER_VARIANT.items() if name in rows}
    own = ["stage", "groups", "codebook_size", *of_paper, *PARAMETERS.values()]
    means = rows.groupby(own, dropna=False)[["value", "change_low", "change_high"]].mean().reset_index()
    differences = sum((means[name] != value).astype(int) for name, value in of_paper.items())
    differences += ~means["commitment"].between(*COMMITMENTS)  # a result with another weight names it
    codewords = (means["codebook_size"] - CODEWORDS).abs()
    means = means.assign(differences=differences, codewords=codewords, not_fine_tuned=means["stage"] != TRAINED)
    return means.sort_values([*DISTANCE, "groups", *PARAMETERS.values()]).iloc[0]


def _absolute(figure: pd.Series, baseline: float) -> list[str]:
    unit = figure["unit"]
    difference = f"{baseline - figure['value']:+.2f}"
    return [reported_text(figure["value"], unit), value_text(baseline, unit), difference, "-", "training"]


def _change(figure: pd.Series, ours: pd.Series, baseline: float, why: list[str]) -> list[str]:
    """The paper's change beside ours: in points of accuracy, or in percent of the perplexity."""
    unit = figure["unit"]
    base = _baseline_of(figure)
    relative = figure["metric"] == "perplexity"

    def change(value: float, of: float) -> float:
        return 100 * (value / of - 1) if relative else value - of

    paper, own = change(figure["value"], base), change(ours["value"], baseline)
    word = "%" if relative else ""
    why = why + ([f"K={ours['codebook_size']:g}"] if ours["codebook_size"] != CODEWORDS else [])
    why += [f"G={ours['groups']:g}; the G of the paper's result is not known"] if pd.isna(figure["groups"]) else []
    why += ["codebooks from k-means, not fine-tuned"] if ours["stage"] != TRAINED else []
    written = {name: ours[name] for name in PAPER_VARIANT if name in ours and pd.notna(ours[name]) and ours[name] != ""}
    differs = [name for name, value in written.items() if value != PAPER_VARIANT[name]]
    why += [DIFFERENCES[name].format(ours[name]) for name in differs]
    interval = f"[{ours['change_low']:+.2f}, {ours['change_high']:+.2f}]"
    cells = [
        f"{paper:+.2f}{word} ({reported_text(figure['value'], unit)})",
        f"{own:+.2f}{word} ({value_text(ours['value'], unit)})",
    ]
    return [*cells, f"{own - paper:+.2f} points", interval, "; ".join(why)]


def _baseline_of(figure: pd.Series) -> float:
    """The paper's value of the uncompressed baseline for the same model and task; NaN if there is none."""
    figures = reported_figures()
    same = (figures["model"] == figure["model"]) & (figures["task"] == figure["task"])
    same &= (figures["method"] == "single") & (figures["metric"] == figure["metric"])
    values = figures.loc[same, "value"]
    return float(values.iloc[0]) if len(values) else float("nan")


def family(model: str) -> str:
    """``vision`` or ``language``; results of the two are not comparable."""
    return "vision" if "vit" in model.lower() else "language"


def plain(name: str) -> str:
    """A name in lower case, letters and digits only, so that ViT-Base and vit_base are the same."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def reported_text(value: float, unit: str) -> str:
    """A value of the paper with all its digits and its unit."""
    return f"{value:g}{UNITS.get(unit, f' {unit}')}"


def value_text(value: float, unit: str) -> str:
    """A value of ours with two decimals and its unit."""
    return f"{value:.2f}{UNITS.get(unit, f' {unit}')}"
