"""Paper, ours, difference, why: every figure that the paper reports, and what stands beside it or why nothing does.

Latencies and bytes are here, qualities in ``analysis.paper.accuracy``.
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
from analysis.text_table import TextTable, number, signed_pct

NOT_MEASURED = {  # a word of a figure's table, setting or metric -> why nothing stands beside it
    "8-bit": "weights are not quantized here",
    "4-bit": "weights are not quantized here",
    "loss": "quality under packet loss is not measured here",
    "train_val_gap": "rows have no accuracy on training examples",
    "table7": "the weights of this model are 32 GB in fp32",
    "table10": "classification of text is not measured here",
}
COLUMNS = ["figure", "setting", "paper", "ours", "difference", "our spread", "why"]
# Of a run: what its conditions are, ``paper_comparison``, ``points``.
Measured: TypeAlias = tuple[tuple[str, ...], pd.DataFrame, pd.DataFrame]


def paper_table(latency: list[pd.DataFrame], quality: list[pd.DataFrame]) -> TextTable:
    """All reported figures; those that have something of ours beside them first.

    latency, quality: rows of the runs at hand, one frame each, the oldest first. Both sides of a ratio are of one run;
    of runs under the same conditions, the latest that has both.
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
        return f"no {figure['metric']} of a {family(figure['model'])} model{groups} among these results"
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
    same = table["model"].map(plain) == plain(figure["model"])
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
