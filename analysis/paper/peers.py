"""Figures that peers publish beside ours: every one of paper/peers.csv, and why nothing stands beside some.

What is compared is what their set-up fixes: bytes and shares of work. Their latencies depend on devices that are not
emulated here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.describe import MODEL, is_analytic, short_modes
from analysis.points import points
from analysis.text_table import TextTable, signed_pct

PEERS_CSV = Path(__file__).parent / "peers.csv"
CLASS_TOKENS = 1  # of the models here, beside ``tokens``
EXPERIMENT = "peers"
RUN = f"+experiment={EXPERIMENT}"
COLUMNS = ["peer", "figure", "theirs", "ours", "difference", "what ours is", "source"]

Ours = Callable[[pd.Series, pd.Series], float]
# quantity -> what it is of a point and of the one that it is against (itself, where there is none)
QUANTITIES: dict[str, Ours] = {
    "fewer_bytes": lambda point, base: 100 * (1 - point["formula_bytes"] / base["formula_bytes"]),
    "less_compute": lambda point, base: 100 * (1 - point["compute_ms"] / base["compute_ms"]),
    "bytes_ratio": lambda point, base: base["formula_bytes"] / point["formula_bytes"],
    "received_per_token": lambda point, _: point["formula_bytes"] / (point["tokens"] + CLASS_TOKENS) / 1024,
}


def peers_table(latency: list[pd.DataFrame]) -> TextTable:
    """All published figures, those with something beside them first. latency: frames of one set of conditions each."""
    tables = [(points(frame), frame) for frame in latency]
    found, missing = [], []
    for _, figure in pd.read_csv(PEERS_CSV, keep_default_na=False).iterrows():
        name, theirs = [figure["peer"], figure["figure"]], f"{figure['value']:g} {figure['unit']}"
        ours = [line for table, frame in tables for line in _beside(table, frame, figure)]
        found += [[*name, theirs, *line, figure["source"]] for line in ours]
        if not ours:
            why = figure["remark"] if figure["quantity"] not in QUANTITIES else f"nothing in this setting; run {RUN}"
            missing.append([*name, theirs, "-", "-", why, figure["source"]])
    notes = [
        "theirs: as they publish them; bytes are the method's formula, which every run checks against its counters"
    ]
    left = frozenset({"figure", "what ours is", "source"})
    return TextTable("Peers' figures beside ours", COLUMNS, found + missing, notes, left=left)


def known_beside(frame: pd.DataFrame) -> TextTable:
    """The published figures that a run of this experiment has something to set beside; no rows for any other run."""
    table, ours = peers_table([frame[frame["experiment"] == EXPERIMENT]]), COLUMNS.index("ours")
    return replace(table, rows=[row for row in table.rows if row[ours] != "-"])


def _beside(table: pd.DataFrame, frame: pd.DataFrame, figure: pd.Series) -> list[list[str]]:
    """[ours, difference, what ours is] of the first point that is in a figure's setting, if any."""
    measure = QUANTITIES.get(figure["quantity"])
    if measure is None:
        return []
    here = table[(table["method"] == figure["method"]) & (table["codec"] == figure["codec"])]
    here = here[here["settings"] == figure["settings"]]
    for name in ("devices", "layers", "hidden", "tokens"):
        here = here[here[name] == float(figure[name])] if figure[name] != "" else here
    for _, point in here.iterrows():
        base = _against(table, point, figure)
        if base is not None:
            ours = measure(point, base)
            how = MODEL if is_analytic(frame) else short_modes(frame)
            what = "; ".join(filter(None, [f"{point['devices']:g} devices", how, figure["remark"]]))
            return [[f"{ours:.4g} {figure['unit']}", signed_pct(100 * (ours / figure["value"] - 1)), what]]
    return []


def _against(table: pd.DataFrame, point: pd.Series, figure: pd.Series) -> pd.Series | None:
    """The same point with the method that the figure is against; the point itself where there is none."""
    if not figure["against"]:
        return point
    same = (table["method"] == figure["against"]) & (table["codec"] == "fp32") & (table["settings"] == "")
    for name in ("bandwidth_mbps", "tokens", *(["devices"] if figure["against"] != "single" else [])):
        same &= table[name] == point[name]
    return table[same].iloc[0] if same.any() else None
