"""Two ways to count the bytes of a method: as the ASTRA paper counts them, and as collectives move them.

Both are formulas, and only rows of the cost model have them. Measured rows are in other tables.
"""

from __future__ import annotations

import pandas as pd

from analysis.points import points
from analysis.text_table import TextTable, number
from testbed.results.schema import ANALYTIC, BASELINE


def accounting_table(frame: pd.DataFrame) -> TextTable:
    """Received data and speed-up over one device by both ways to count.

    Columns: the method variant, MB by the paper's count and by the collectives, messages, and for each bandwidth in
    Mbps the speed-up by both. No rows if the frame has no rows of the cost model with the paper's count.
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
        "each cell: speed-up by the paper's count / by the bytes of the collectives; both are formulas, nothing was "
        "measured",
        "MB: received by the device that receives most; the paper counts a tensor-parallel all-reduce as one "
        "all-gather, and counts no encoding",
        "messages: received by that device in one forward pass; -: the paper does not say how it would count this",
    ]
    columns = ["method", "MB, paper", "MB, collectives", "messages", *(f"{each:g} Mbps" for each in bandwidths)]
    return TextTable("Speed-up over one device: the paper's count and the collectives' bytes", columns, rows, notes)
