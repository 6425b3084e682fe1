"""Paper, ours, difference, why: every figure that the paper reports, and what stands beside it or why nothing does.

A quality is compared by its change against the uncompressed model, because models and data differ.
"""

from __future__ import annotations

import re
from typing import TypeAlias

import pandas as pd

from analysis.accuracy import ORIGINAL, TRAINED
from analysis.cells import TextTable, number, signed_pct
from analysis.reported import (
    PAPER_RATIOS,
    PAPER_SETTING,
    counterpart,
    in_paper_setting,
    latency_differences,
    paper_comparison,
    paper_configs,
    reported_figures,
)
from analysis.runs import CONDITIONS
from analysis.tables import points
from analysis.tradeoff import FLOAT_BITS
from analysis.words import data_of, joined

METRICS = {"accuracy": "accuracy_pct", "perplexity": "perplexity"}  # the paper's name -> ours
CODEWORDS = PAPER_SETTING["codebook_size"]
# How the paper makes a variant, in the columns of our rows, and what is said of one that is made otherwise.
PAPER_WAY = {
    "class_tokens": "distributed",
    "objective": "labels",
    "trained_on": "4",
    "quantised": "residual",
    "anchors": 0,
}
WAYS = {
    "class_tokens": "{} class token",
    "objective": "trained by {}",
    "trained_on": "trained on {} devices",
    "quantised": "{} quantised",
    "anchors": "{:g} exact anchor tokens",
}
UNITS = {"x": "x", "%": "%", "ppl": ""}
KNOBS = {"lambda": "noise", "beta": "commitment"}
NOT_MEASURED = {  # a word of a figure's table, setting or metric -> why nothing stands beside it
    "8-bit": "weights are not quantised here",
    "4-bit": "weights are not quantised here",
    "loss": "quality under packet loss is not measured here",
    "train_val_gap": "rows have no accuracy on training examples",
    "table7": "the weights of this model are 32 GB in fp32",
    "table10": "classification of text is not measured here",
}
ZERO_SHOT = "zero-shot"  # of the paper's tasks: judged on another text than the one that codebooks were made of
COLUMNS = ["figure", "setting", "paper", "ours", "difference", "our spread", "why"]
# Of a run: what its conditions are, ``paper_comparison``, ``points``.
Measured: TypeAlias = tuple[tuple[str, ...], pd.DataFrame, pd.DataFrame]


def paper_table(latency: list[pd.DataFrame], quality: list[pd.DataFrame]) -> TextTable:
    """All reported figures; those that have something of ours beside them first.

    latency, quality: rows of the runs at hand, one frame each, the oldest first. Both sides of a ratio are of one run;
    of runs under the same conditions, the latest that has both.
    """
    judged = pd.concat(quality, ignore_index=True) if quality else None
    measured = [(_conditions(frame), paper_comparison(frame), points(frame)) for frame in reversed(latency)]
    found: list[list[str]] = []
    missing: list[list[str]] = []
    for index, figure in reported_figures().iterrows():
        name = _name(figure)
        ours = _of_runs(measured, int(str(index)), figure)
        if judged is not None and figure["metric"] in METRICS:
            ours += _of_quality(judged, figure)
        found += [[*name, *cells] for cells in ours]
        if not ours:
            missing.append([*name, _reported(figure["value"], figure["unit"]), "-", "-", "-", _why_not(figure)])
    notes = ["paper: as it reports them; their network is bits divided by bandwidth"]
    notes += [
        "accuracy: change in points against the uncompressed model of the same experiment; perplexity: in percent; "
        "value in brackets"
    ]
    left = frozenset({*COLUMNS[:2], COLUMNS[-1]})
    return TextTable("Paper, ours, difference, why", COLUMNS, found + missing, notes, left=left)


def _conditions(frame: pd.DataFrame) -> tuple[str, ...]:
    return tuple(joined(frame, name) for name in CONDITIONS)


def _of_runs(measured: list[Measured], index: int, figure: pd.Series) -> list[list[str]]:
    """Cells of every match, for each set of conditions of the first run that has any."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for conditions, beside, table in measured:
        if not found.get(conditions):
            found[conditions] = _of_latency(beside, table, index, figure)
    return [cells for of_conditions in found.values() for cells in of_conditions]


def _name(figure: pd.Series) -> list[str]:
    """(what, where) of a figure."""
    setting = "" if pd.isna(figure["setting"]) else f", {figure['setting']}"
    bandwidth = "" if pd.isna(figure["bandwidth_mbps"]) else f", {figure['bandwidth_mbps']:g} Mbps"
    what = f"{figure['method']} {figure['metric'].replace('_', ' ')}"
    return [what, f"{figure['table']}: {figure['model']}, {figure['task']}{setting}{bandwidth}"]


def _reported(value: float, unit: str) -> str:
    """The paper's figure with all its digits."""
    return f"{value:g}{UNITS.get(unit, f' {unit}')}"


def _value(value: float, unit: str) -> str:
    """Ours, with as many digits as are worth something."""
    return f"{value:.2f}{UNITS.get(unit, f' {unit}')}"


def _never(figure: pd.Series) -> str:
    """Why there is nothing of ours for a figure whatever is run; "" where there may be."""
    words = f"{figure['table']} {figure['setting']} {figure['metric']}".split()
    return next((why for word, why in NOT_MEASURED.items() if word in words), "")


def _why_not(figure: pd.Series) -> str:
    if why := _never(figure):
        return why
    if figure["method"] == "single" and figure["metric"] in METRICS:
        return "of a model that is not among these results; what another one is worth says nothing of it"
    configs = paper_configs()
    able = [not {figure["table"], figure["task"]}.isdisjoint(words.split()) for words in configs["figures"]]
    return _missing(figure) + "".join(f"; run +experiment={config}" for config in configs.loc[able, "config"].head(1))


def _missing(figure: pd.Series) -> str:
    if figure["metric"] in METRICS:
        groups = "" if pd.isna(figure["groups"]) else f" with G={figure['groups']:g}"
        return f"no {figure['metric']} of a {_family(figure['model'])} model{groups} among these results"
    if figure["metric"] == "latency":
        return f"no latency of {figure['model']} among these results"
    return "no point in this setting among these results"


def _of_latency(beside: pd.DataFrame, table: pd.DataFrame, index: int, figure: pd.Series) -> list[list[str]]:
    """[paper, ours, difference, spread, why] of each match; beside: ``paper_comparison``, table: ``points``."""
    if figure["metric"] in PAPER_RATIOS:
        beside = beside.loc[beside["reported"] == index, ["paper", "ours", "spread_pct", "why"]]
        return [_ratio(*values) for values in beside.itertuples(index=False)]
    if figure["metric"] == "compression":
        return _compression(table, figure)
    if figure["metric"] == "latency":
        return _seconds(table, figure)
    return []


def _ratio(paper: float, ours: float, spread_pct: float, why: str) -> list[str]:
    spread = "-" if pd.isna(spread_pct) else f"{spread_pct:.1f}%"
    return [f"{paper:g}x", number(ours, "x"), signed_pct(100 * (ours / paper - 1)), spread, why]


def _compression(table: pd.DataFrame, figure: pd.Series) -> list[list[str]]:
    """Bytes that sequence parallelism sends over those of astra; counted bytes equal the formula's in every row."""
    ours = table[in_paper_setting(table) & (table["method"] == "astra") & (table["groups"] == figure["groups"])].head(1)
    found = []
    for _, point in ours.iterrows():
        base = counterpart(table, point, "sequence")
        if base is not None and point["formula_bytes"] > 0:
            why = "all bytes of a pass: codes, and the average of the class tokens at the end"
            found.append(_ratio(figure["value"], base["formula_bytes"] / point["formula_bytes"], float("nan"), why))
    return found


def _seconds(table: pd.DataFrame, figure: pd.Series) -> list[list[str]]:
    """The same model's latency; other models' are not comparable."""
    same = table["model"].map(_plain) == _plain(figure["model"])
    for name in ("method", "groups", "bandwidth_mbps", "devices", "tokens"):
        if pd.notna(figure[name]):
            same &= table[name] == figure[name]
    found = []
    for _, point in table[same].iterrows():
        seconds = point["latency_ms"] / 1e3
        spread = "-" if pd.isna(point["spread_pct"]) else f"{point['spread_pct']:.1f}%"
        why = "; ".join(latency_differences(point, point, None))
        difference = signed_pct(100 * (seconds / figure["value"] - 1))
        found.append([f"{figure['value']} s", f"{seconds:.3f} s", difference, spread, why])
    return found


def _of_quality(rows: pd.DataFrame, figure: pd.Series) -> list[list[str]]:
    """What quality experiments say of one figure, for each model and data set of ours."""
    if _never(figure):
        return []
    rows = rows[(rows["status"] == "ok") & (rows["metric"] == METRICS[figure["metric"]])]
    rows = rows[rows["model"].map(_family) == _family(figure["model"])]
    found = []
    for _, of in rows.groupby(["model", "data", *(["corpus"] if "corpus" in rows else [])], sort=False):
        if "corpus" in of and _is_zero_shot(of) != (ZERO_SHOT in figure["task"]):
            continue
        model, data = joined(of, "model"), data_of(of)
        original = of[of["stage"] == ORIGINAL]["value"].mean()
        other = [f"model {model} ({_size(of)})"] if _plain(model) != _plain(figure["model"]) else []
        other += [f"data {data}"] if _plain(data) != _plain(figure["task"]) else []
        if figure["method"] == "single" and pd.notna(original) and not other:  # else it is another model's own figure
            found.append(_absolute(figure, original))
        elif figure["method"] == "astra" and (ours := _like_the_papers(of, figure)) is not None:
            found.append(_change(figure, ours, original, other))
    return found


def _is_zero_shot(rows: pd.DataFrame) -> bool:
    """Whether a language model is judged on another text than the one that its codebooks are of."""
    return bool(joined(rows, "corpus")) and joined(rows, "corpus") != joined(rows, "data")


def _size(rows: pd.DataFrame) -> str:
    """What rows of quality tell of a model's sizes."""
    hidden = (rows["compression"] * rows["bits_per_token"] / FLOAT_BITS).round().median()
    return ", ".join(filter(None, [f"D={hidden:g}", joined(rows, "tokens", "{} tokens")]))


def _like_the_papers(rows: pd.DataFrame, figure: pd.Series) -> pd.Series | None:
    """Our variant that is made most as the paper's, mean over seeds; None if none has its groups and knobs.

    Adapted ones come before codebooks of k-means alone.
    """
    rows = rows[(rows["stage"] != ORIGINAL) & (rows["devices"] == figure["devices"])]
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
    codewords = (means["codebook_size"] - CODEWORDS).abs()
    means = means.assign(far=far, codewords=codewords, raw=means["stage"] != TRAINED)
    return means.sort_values(["raw", "codewords", "far", *KNOBS.values()]).iloc[0]


def _absolute(figure: pd.Series, original: float) -> list[str]:
    unit = figure["unit"]
    difference = f"{original - figure['value']:+.2f}"
    return [_reported(figure["value"], unit), _value(original, unit), difference, "-", "training"]


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
        f"{paper:+.2f}{word} ({_reported(figure['value'], unit)})",
        f"{own:+.2f}{word} ({_value(ours['value'], unit)})",
    ]
    return [*cells, f"{own - paper:+.2f} points", interval, "; ".join(why)]


def _original_of(figure: pd.Series) -> float:
    """The uncompressed model's figure of the same model and task, from wherever the paper reports it."""
    reported = reported_figures()
    same = (reported["model"] == figure["model"]) & (reported["task"] == figure["task"])
    same &= (reported["method"] == "single") & (reported["metric"] == figure["metric"])
    values = reported.loc[same, "value"]
    return float(values.iloc[0]) if len(values) else float("nan")


def _family(model: str) -> str:
    """Pictures or text: a figure of the one says nothing of the other."""
    return "vision" if "vit" in model.lower() else "language"


def _plain(name: str) -> str:
    """A name without what people write differently: ViT-Base and vit_base are the same."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())
