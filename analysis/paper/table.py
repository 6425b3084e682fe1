"""Every result that the paper reports, beside ours or with the reason why there is none.

This module compares latencies and bytes; ``analysis.paper.accuracy`` compares accuracies and perplexities.
"""

from __future__ import annotations

from typing import TypeAlias

import pandas as pd

from analysis.describe import joined
from analysis.paper.accuracy import METRICS, family, plain, quality_beside, reported_text
from analysis.paper.latency import (
    PAPER_RATIOS,
    counterpart,
    in_paper_setting,
    latency_differences,
    paper_comparison,
    paper_configs,
    reported_figures,
)
from analysis.points import points
from analysis.runs import CONDITIONS
from analysis.text_table import TextTable, number, percent, signed_pct

NOT_MEASURED = {  # a word in the table, setting or metric of a result -> why there is none of ours
    "8-bit": "weights are not quantized here",
    "4-bit": "weights are not quantized here",
    "loss": "perplexity under packet loss is not measured here",
    "train_val_gap": "accuracy on training examples is not measured here",
    "table7": "the weights of this model are 32 GB in fp32",
    "table10": "classification of text is not measured here",
}
COLUMNS = ["result", "setting", "paper", "ours", "difference", "our spread", "why"]
# Of a run: its conditions, its ``paper_comparison``, its ``points``.
Measured: TypeAlias = tuple[tuple[str, ...], pd.DataFrame, pd.DataFrame]


def paper_table(latency: list[pd.DataFrame], quality: list[pd.DataFrame]) -> TextTable:
    """All results that the paper reports; those with a result of ours beside them come first.

    Columns: COLUMNS. latency, quality: rows of latency and of accuracy experiments, one frame a run, the oldest first.
    Both sides of a ratio are of one run: of several runs under the same conditions, the latest one that has both.
    """
    measured = [(_conditions(frame), paper_comparison(frame), points(frame)) for frame in reversed(latency)]
    found: list[list[str]] = []
    missing: list[list[str]] = []
    for index, figure in reported_figures().iterrows():
        name = _name(figure)
        ours = _of_runs(measured, int(str(index)), figure)
        if figure["metric"] in METRICS and not _never(figure):
            ours += quality_beside(quality, figure)
        found += [[*name, *cells] for cells in ours]
        if not ours:
            missing.append([*name, reported_text(figure["value"], figure["unit"]), "-", "-", "-", _why_not(figure)])
    notes = ["paper: as reported; the paper computes its network times as bits divided by bandwidth"]
    notes += [
        "accuracy and perplexity: change from the uncompressed baseline of the same experiment, in points of accuracy "
        "or in percent of the perplexity; the value is in brackets"
    ]
    left = frozenset({*COLUMNS[:2], COLUMNS[-1]})
    return TextTable("Paper, ours, difference, why", COLUMNS, found + missing, notes, left=left)


def _conditions(frame: pd.DataFrame) -> tuple[str, ...]:
    return tuple(joined(frame, name) for name in CONDITIONS)


def _of_runs(measured: list[Measured], index: int, figure: pd.Series) -> list[list[str]]:
    """Cells of every match. Of the runs under the same conditions, the first one that has a match."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for conditions, beside, table in measured:
        if not found.get(conditions):
            found[conditions] = _of_latency(beside, table, index, figure)
    return [cells for of_conditions in found.values() for cells in of_conditions]


def _name(figure: pd.Series) -> list[str]:
    """[result, setting] of a reported number."""
    setting = "" if pd.isna(figure["setting"]) else f", {figure['setting']}"
    bandwidth = "" if pd.isna(figure["bandwidth_mbps"]) else f", {figure['bandwidth_mbps']:g} Mbps"
    what = f"{figure['method']} {figure['metric'].replace('_', ' ')}"
    return [what, f"{figure['table']}: {figure['model']}, {figure['task']}{setting}{bandwidth}"]


def _never(figure: pd.Series) -> str:
    """Why no experiment here measures a result; "" if one does."""
    words = f"{figure['table']} {figure['setting']} {figure['metric']}".split()
    return next((why for word, why in NOT_MEASURED.items() if word in words), "")


def _why_not(figure: pd.Series) -> str:
    if why := _never(figure):
        return why
    if figure["method"] == "single" and figure["metric"] in METRICS:
        return "the model is not among these results, and values of other models are not comparable"
    configs = paper_configs()
    able = [not {figure["table"], figure["task"]}.isdisjoint(words.split()) for words in configs["figures"]]
    return _missing(figure) + "".join(f"; run +experiment={config}" for config in configs.loc[able, "config"].head(1))


def _missing(figure: pd.Series) -> str:
    if figure["metric"] in METRICS:
        groups = "" if pd.isna(figure["groups"]) else f" with G={figure['groups']:g}"
        return f"no {figure['metric']} of a {family(figure['model'])} model{groups} among these results"
    if figure["metric"] == "latency":
        return f"no latency of {figure['model']} among these results"
    return "no point in this setting among these results"


def _of_latency(beside: pd.DataFrame, table: pd.DataFrame, index: int, figure: pd.Series) -> list[list[str]]:
    """[paper, ours, difference, spread, why] of each match. beside: ``paper_comparison``. table: ``points``."""
    if figure["metric"] in PAPER_RATIOS:
        beside = beside.loc[beside["reported"] == index, ["paper", "ours", "spread_pct", "why"]]
        return [_ratio(*values) for values in beside.itertuples(index=False)]
    if figure["metric"] == "compression":
        return _compression(table, figure)
    if figure["metric"] == "latency":
        return _seconds(table, figure)
    return []


def _ratio(paper: float, ours: float, spread_pct: float, why: str) -> list[str]:
    return [f"{paper:g}x", number(ours, "x"), signed_pct(100 * (ours / paper - 1)), percent(spread_pct), why]


def _compression(table: pd.DataFrame, figure: pd.Series) -> list[list[str]]:
    """Bytes of ``sequence`` divided by bytes of ``astra``, by the formulas that every row is verified with."""
    ours = table[in_paper_setting(table) & (table["method"] == "astra") & (table["groups"] == figure["groups"])].head(1)
    found = []
    for _, point in ours.iterrows():
        base = counterpart(table, point, "sequence")
        if base is not None and point["formula_bytes"] > 0:
            why = "ours counts all bytes of a forward pass: codes, and the class tokens that are averaged at the end"
            found.append(_ratio(figure["value"], base["formula_bytes"] / point["formula_bytes"], float("nan"), why))
    return found


def _seconds(table: pd.DataFrame, figure: pd.Series) -> list[list[str]]:
    """Latency of the same model. Latencies of other models are not comparable."""
    same = table["model"].map(plain) == plain(figure["model"])
    for name in ("method", "groups", "bandwidth_mbps", "devices", "tokens"):
        if pd.notna(figure[name]):
            same &= table[name] == figure[name]
    found = []
    for _, point in table[same].iterrows():
        seconds = point["latency_ms"] / 1e3
        why = "; ".join(latency_differences(point, point, None))
        difference = signed_pct(100 * (seconds / figure["value"] - 1))
        found.append([f"{figure['value']} s", f"{seconds:.3f} s", difference, percent(point["spread_pct"]), why])
    return found
