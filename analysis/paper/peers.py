"""Results that related work publishes (peers.csv), beside ours or with the reason why there is none.

Only bytes and amounts of computation are compared, because the published setting determines them. Published latencies
depend on devices that are not emulated here.
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
CLASS_TOKENS = 1  # which the models here have in addition to ``tokens``
EXPERIMENT = "peers"
RUN = f"+experiment={EXPERIMENT}"
COLUMNS = ["publication", "result", "published", "ours", "difference", "conditions of ours", "source"]

Ours = Callable[[pd.Series, pd.Series], float]
# quantity -> its value, from a point and the point that it is compared with (itself, if the result is no comparison)
QUANTITIES: dict[str, Ours] = {
    "fewer_bytes": lambda point, base: 100 * (1 - point["formula_bytes"] / base["formula_bytes"]),
    "less_compute": lambda point, base: 100 * (1 - point["compute_ms"] / base["compute_ms"]),
    "bytes_ratio": lambda point, base: base["formula_bytes"] / point["formula_bytes"],
    "received_per_token": lambda point, _: point["formula_bytes"] / (point["tokens"] + CLASS_TOKENS) / 1024,
}


def peers_table(latency: list[pd.DataFrame]) -> TextTable:
    """All published results; those with a result of ours beside them come first. Columns: COLUMNS.

    latency: rows of latency experiments, one frame for each set of conditions.
    """
    tables = [(points(frame), frame) for frame in latency]
    found, missing = [], []
    for _, figure in pd.read_csv(PEERS_CSV, keep_default_na=False).iterrows():
        name, published = [figure["publication"], figure["result"]], f"{figure['value']:g} {figure['unit']}"
        ours = [line for table, frame in tables for line in _beside(table, frame, figure)]
        found += [[*name, published, *line, figure["source"]] for line in ours]
        if not ours:
            why = figure["remark"] if figure["quantity"] not in QUANTITIES else f"no point in this setting; run {RUN}"
            missing.append([*name, published, "-", "-", why, figure["source"]])
    notes = [
        "published: as in the source; ours: bytes by the method's formula, which every run checks against its counters"
    ]
    left = frozenset({"result", "conditions of ours", "source"})
    return TextTable("Results of related work beside ours", COLUMNS, found + missing, notes, left=left)


def peers_beside(frame: pd.DataFrame) -> TextTable:
    """The published results that a run of the experiment ``peers`` can be compared with; no rows for any other run."""
    table, ours = peers_table([frame[frame["experiment"] == EXPERIMENT]]), COLUMNS.index("ours")
    return replace(table, rows=[row for row in table.rows if row[ours] != "-"])


def _beside(table: pd.DataFrame, frame: pd.DataFrame, figure: pd.Series) -> list[list[str]]:
    """[[ours, difference, conditions]] of the first point in the setting of a published result, or []."""
    measure = QUANTITIES.get(figure["quantity"])
    if measure is None:
        return []
    here = table[(table["method"] == figure["method"]) & (table["codec"] == figure["codec"])]
    here = here[here["settings"] == figure["settings"]]
    for name in ("devices", "layers", "hidden", "tokens"):
        here = here[here[name] == float(figure[name])] if figure[name] != "" else here
    for _, point in here.iterrows():
        base = _compared_with(table, point, figure)
        if base is not None:
            ours = measure(point, base)
            how = MODEL if is_analytic(frame) else short_modes(frame)
            # Bytes follow from formulas; only computation was measured.
            measured = figure["quantity"] == "less_compute"
            words = [f"{point['devices']:g} devices", how, figure["remark"]]
            words += ["degraded fidelity"] if measured and (point["degraded"] or base["degraded"]) else []
            words += ["one repeat, or no warm-up"] if measured and (point["one"] or base["one"]) else []
            what = "; ".join(filter(None, words))
            return [[f"{ours:.4g} {figure['unit']}", signed_pct(100 * (ours / figure["value"] - 1)), what]]
    return []


def _compared_with(table: pd.DataFrame, point: pd.Series, figure: pd.Series) -> pd.Series | None:
    """The same point with the method that the result is compared with; the point itself if it is no comparison."""
    if not figure["against"]:
        return point
    same = (table["method"] == figure["against"]) & (table["codec"] == "fp32") & (table["settings"] == "")
    for name in ("bandwidth_mbps", "tokens", *(["devices"] if figure["against"] != "single" else [])):
        same &= table[name] == point[name]
    return table[same].iloc[0] if same.any() else None
