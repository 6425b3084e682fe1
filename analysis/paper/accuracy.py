"""The paper's accuracies and perplexities with ours beside them, by their changes, because models and data differ."""

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
# How the paper makes a variant, in the columns of our rows, and what is said of one that is made otherwise.
PAPER_WAY = {
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
WAYS = {
    "class_tokens": "{} class token",
    "objective": "trained by {}",
    "trained_on": "trained on {} devices",
    "quantized": "{} quantized",
    "anchor_tokens": "{:g} exact anchor tokens",
    "num_quantizers": "{:g} codebooks in a row",
    "pre_rotation": "tokens turned to {}",
    "int8_tokens": "{:g} tokens of a device in int8",
    "gradient": "gradient by {}",
}
UNITS = {"x": "x", "%": "%", "ppl": ""}
KNOBS = {"lambda": "noise", "beta": "commitment"}
COMMITMENTS = (1e-4, 5e-4)  # the least and the most that the paper trains with
FAR = ["raw", "codewords", "far"]  # columns by which variants are more or less like the paper's
ZERO_SHOT = "zero-shot"  # of the paper's tasks: judged on another text than the one that codebooks were made of


def quality_beside(frames: list[pd.DataFrame], figure: pd.Series) -> list[list[str]]:
    """[paper, ours, difference, interval, why] of a figure, once for each model and text or set of pictures of ours.

    frames: rows of runs on quality, the oldest first. Of several runs the one that varies what the figure is about,
    then the one most like the paper, then the latest; a variant and its original are of one run.
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
    """(how far from the paper's, cells) of a run's rows of one model and text; None if they have nothing to say."""
    original = of[of["stage"] == UNCOMPRESSED]["value"].mean()
    model, data = joined(of, "model"), data_of(of)
    other = [f"model {model} ({sizes_of(of)})"] if plain(model) != plain(figure["model"]) else []
    other += [f"data {data}"] if plain(data) != plain(figure["task"]) else []
    if figure["method"] == "single" and pd.notna(original) and not other:  # else it is another model's own figure
        return (), _absolute(figure, original)
    if figure["method"] != "astra" or (ours := _like_the_papers(of, figure)) is None:
        return None
    knobs = [name for knob, name in KNOBS.items() if f"{knob}=" in str(figure["setting"])]
    trained = of[of["stage"] == TRAINED]
    lone = any(trained[name].nunique() < 2 for name in knobs)  # nothing to compare this value of the knob with
    return (lone, *ours[FAR]), _change(figure, ours, original, other)


def _is_zero_shot(rows: pd.DataFrame) -> bool:
    """Whether a language model is judged on another text than the one that its codebooks are of."""
    return bool(joined(rows, "corpus")) and joined(rows, "corpus") != joined(rows, "data")


def _like_the_papers(rows: pd.DataFrame, figure: pd.Series) -> pd.Series | None:
    """Our variant that is made most as the paper's, mean over seeds; None if none has its groups and knobs.

    Adapted ones come before codebooks of k-means alone.
    """
    rows = rows[(rows["stage"] != UNCOMPRESSED) & (rows["devices"] == figure["devices"])]
    if pd.notna(figure["groups"]):
        rows = rows[rows["groups"] == figure["groups"]]
    for knob, name in KNOBS.items():
        if found := re.search(rf"\b{knob}=([\d.]+)", str(figure["setting"])):
            rows = rows[(rows[name] == float(found[1])) & (rows["stage"] == TRAINED)]
    if rows.empty:
        return None
    ways = {name: way for name, way in PAPER_WAY.items() if name in rows}
    own = ["stage", "groups", "codebook_size", *ways, *KNOBS.values()]
    means = rows.groupby(own, dropna=False)[["value", "change_low", "change_high"]].mean().reset_index()
    far = sum((means[name] != way).astype(int) for name, way in ways.items())
    far += ~means["commitment"].between(*COMMITMENTS)  # a figure of another one has it among its knobs
    codewords = (means["codebook_size"] - CODEWORDS).abs()
    means = means.assign(far=far, codewords=codewords, raw=means["stage"] != TRAINED)
    return means.sort_values([*FAR, "groups", *KNOBS.values()]).iloc[0]


def _absolute(figure: pd.Series, original: float) -> list[str]:
    unit = figure["unit"]
    difference = f"{original - figure['value']:+.2f}"
    return [reported_text(figure["value"], unit), value_text(original, unit), difference, "-", "training"]


def _change(figure: pd.Series, ours: pd.Series, original: float, why: list[str]) -> list[str]:
    """Change of ours beside change of the paper's: in points, of a perplexity in percent."""
    unit = figure["unit"]
    base = _original_of(figure)
    relative = figure["metric"] == "perplexity"

    def change(value: float, of: float) -> float:
        return 100 * (value / of - 1) if relative else value - of

    paper, own = change(figure["value"], base), change(ours["value"], original)
    word = "%" if relative else ""
    why = why + ([f"K={ours['codebook_size']:g}"] if ours["codebook_size"] != CODEWORDS else [])
    why += [f"G={ours['groups']:g}, the paper's is not known to us"] if pd.isna(figure["groups"]) else []
    why += ["codebooks of k-means, not adapted"] if ours["stage"] != TRAINED else []
    written = {name: ours[name] for name in PAPER_WAY if name in ours and pd.notna(ours[name]) and ours[name] != ""}
    differs = [name for name, value in written.items() if value != PAPER_WAY[name]]
    why += [WAYS[name].format(ours[name]) for name in differs]
    interval = f"[{ours['change_low']:+.2f}, {ours['change_high']:+.2f}]"
    cells = [
        f"{paper:+.2f}{word} ({reported_text(figure['value'], unit)})",
        f"{own:+.2f}{word} ({value_text(ours['value'], unit)})",
    ]
    return [*cells, f"{own - paper:+.2f} points", interval, "; ".join(why)]


def _original_of(figure: pd.Series) -> float:
    """The uncompressed model's figure of the same model and task, from wherever the paper reports it."""
    figures = reported_figures()
    same = (figures["model"] == figure["model"]) & (figures["task"] == figure["task"])
    same &= (figures["method"] == "single") & (figures["metric"] == figure["metric"])
    values = figures.loc[same, "value"]
    return float(values.iloc[0]) if len(values) else float("nan")


def family(model: str) -> str:
    """Images or text: a figure of the one says nothing of the other."""
    return "vision" if "vit" in model.lower() else "language"


def plain(name: str) -> str:
    """A name without what people write differently: ViT-Base and vit_base are the same."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def reported_text(value: float, unit: str) -> str:
    """The paper's figure with all its digits."""
    return f"{value:g}{UNITS.get(unit, f' {unit}')}"


def value_text(value: float, unit: str) -> str:
    """Ours, with as many digits as are worth something."""
    return f"{value:.2f}{UNITS.get(unit, f' {unit}')}"
