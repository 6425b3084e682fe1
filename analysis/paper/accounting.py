"""Two ways to count the same method, side by side: as the ASTRA paper counts, and as collectives really move data.

Both are formulas. Only rows of the cost model have them; what was measured stands in tables of its own.
"""

from __future__ import annotations

import pandas as pd

from analysis.points import points
from analysis.text_table import TextTable, number
from testbed.results.schema import ANALYTIC, BASELINE


def accounting_table(frame: pd.DataFrame) -> TextTable:
    """Volumes and messages of each method, and its speed-up at each bandwidth by both accountings.

    No rows where the frame has none of the cost model with the paper's accounting.
    """
    table = points(frame[frame["compute_mode"] == ANALYTIC])
    single = table[table["method"] == BASELINE].groupby("tokens")["paper_latency_ms"].median()
    table = table[table["method"] != BASELINE]
    bandwidths = sorted(table["bandwidth_mbps"].dropna().unique())
    rows = []
    for label, here in table.groupby("label", sort=False) if table["paper_bytes"].notna().any() else ():
        first = here.iloc[0]
        by_paper = here["tokens"].map(single) / here["paper_latency_ms"]
        pairs = zip(here["bandwidth_mbps"], by_paper, here["speedup"], strict=True)
        cells = {bandwidth: f"{number(paper)} / {number(ours)}" for bandwidth, paper, ours in pairs}
        volumes = [number(first[name] / 1e6) for name in ("paper_bytes", "formula_bytes")]
        rows.append([str(label), *volumes, number(first["messages"]), *(cells.get(each, "-") for each in bandwidths)])
    notes = [
        "by formulas alone, nothing was measured: the paper's accounting / the real collective",
        "MB: what the device receives that receives most; the paper counts a tensor-parallel all-reduce as one "
        "all-gather, and no encoding",
        "messages: that it receives in one pass; - : the paper does not say how it would count this",
    ]
    columns = ["method", "MB, paper", "MB, collective", "messages", *(f"{each:g} Mbps" for each in bandwidths)]
    return TextTable("Speed-up over one device by two accountings", columns, rows, notes)
