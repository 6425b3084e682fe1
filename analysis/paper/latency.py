"""The paper's latency figures beside ours. Its figures are those of paper/reported.csv, and nowhere retyped."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.points import points
from testbed.results.schema import ANALYTIC

REPORTED_CSV = Path(__file__).parent / "reported.csv"
CONFIGS_CSV = Path(__file__).parent / "configs.csv"
# The workload of the paper's latency figures: 12 layers of width 768, 1024 tokens, 4 devices, K = 1024.
PAPER_SETTING = {"layers": 12, "hidden": 768, "tokens": 1024, "devices": 4, "codebook_size": 1024}
PAPER_PROFILE = "gtx1660ti"
PAPER_TENSOR_VOLUME = 2  # two all-reduces a layer, each counted as one all-gather
PAPER_BLOCK_GATHERS = 1  # Nb of the best figure over BP+AG
PAPER_SETTINGS = {"block": f"blocks={PAPER_BLOCK_GATHERS}"}  # of methods whose standard settings are others
# Reported metric -> the method in the ratio's numerator.
PAPER_RATIOS = {
    "speedup_over_single": "single",
    "speedup_over_sequence": "sequence",
    "speedup_over_tensor": "tensor",
    "speedup_over_block_ag": "block",
}


def reported_figures(reported_csv: Path | str = REPORTED_CSV) -> pd.DataFrame:
    """What the paper reports, without what was derived from it.

    Columns: table, model, task, setting, method, groups, bandwidth_mbps, devices, tokens, metric, value, unit, kind.
    """
    reported = pd.read_csv(reported_csv)
    return reported[reported["kind"] == "reported"]


def paper_configs() -> pd.DataFrame:
    """The experiments that measure what the paper reports, in the order in which ``make paper`` runs them.

    Columns: config (+experiment=NAME), figures (tables or tasks of ``reported_figures``, separated by spaces; none
    where the paper's figures are not known to us), minutes and quick_minutes (about, on two cores; quick: with
    preset=quick), what.
    """
    return pd.read_csv(CONFIGS_CSV).fillna({"figures": ""})


def paper_comparison(frame: pd.DataFrame, reported_csv: Path | str = REPORTED_CSV) -> pd.DataFrame:
    """The paper's reported speed-ups of astra beside ours, for the points that this run has in the paper's setting.

    Columns: figure (astra G=1 over single), bandwidth_mbps, paper, ours, difference_pct, spread_pct (of our points),
    why: in what our conditions differ from the paper's, reported: the index of the figure in ``reported_figures``.
    """
    reported = reported_figures(reported_csv)
    reported = reported[reported["metric"].isin(PAPER_RATIOS)]
    table = points(frame)
    found = []
    for index, figure in reported.iterrows():
        ours = table[in_paper_setting(table) & (table["method"] == "astra")]
        ours = ours[(ours["groups"] == figure["groups"]) & (ours["bandwidth_mbps"] == figure["bandwidth_mbps"])]
        for _, point in ours.iterrows():
            base = counterpart(table, point, PAPER_RATIOS[figure["metric"]])
            if base is None:
                continue
            ratio = base["latency_ms"] / point["latency_ms"]
            found.append(
                {
                    "figure": f"{point['label']} over {PAPER_RATIOS[figure['metric']]}",
                    "bandwidth_mbps": point["bandwidth_mbps"],
                    "paper": figure["value"],
                    "ours": ratio,
                    "difference_pct": 100 * (ratio / figure["value"] - 1),
                    "spread_pct": pd.Series([point["spread_pct"], base["spread_pct"]]).max(),
                    "reported": index,
                    "why": "; ".join(latency_differences(point, base, counterpart(table, point, "sequence"))),
                }
            )
    columns = ["figure", "bandwidth_mbps", "paper", "ours", "difference_pct", "spread_pct", "why", "reported"]
    return pd.DataFrame(found, columns=columns)


def in_paper_setting(table: pd.DataFrame) -> pd.Series:
    """Which points have the workload and the devices of the paper's latency figures, bool."""
    same = pd.Series(True, index=table.index)
    for name, value in PAPER_SETTING.items():
        same &= table[name] == value
    return same & table["optimizations"].fillna("").isin(["paper", ""]) & (table["loss_pct"].fillna(0) == 0)


def counterpart(table: pd.DataFrame, point: pd.Series, method: str) -> pd.Series | None:
    """The same point with another method, in the paper's number format and settings where there are several."""
    same = (table["method"] == method) & (table["bandwidth_mbps"] == point["bandwidth_mbps"])
    shared = ["model", "tokens", "layers", "hidden", "network", "compute_mode", "device_profile"]
    for name in shared + (["devices", "partition", "topology", "delay_ms"] if method != "single" else []):
        same &= (table[name] == point[name]) | (table[name].isna() & pd.isna(point[name]))
    rows = table[same]
    if rows["codec"].nunique() > 1:
        rows = rows[rows["codec"].isin(["fp32", "none", ""])]
    for settings in (PAPER_SETTINGS.get(method, ""), ""):
        if (rows["settings"] == settings).any():
            rows = rows[rows["settings"] == settings]
            break
    return None if rows.empty else rows.iloc[0]


def latency_differences(point: pd.Series, base: pd.Series, sequence: pd.Series | None) -> list[str]:
    """In what the two points differ from the paper's conditions, most important first."""
    words = []
    if point["network"] == ANALYTIC:
        words.append("ours is the cost model: nothing was measured")
    else:
        words.append(f"the paper divides bits by bandwidth, here {point['network']}")
    if point["compute_mode"] == "execute":
        words.append("computed at this machine's speed")
    elif point["device_profile"] != PAPER_PROFILE:
        words.append(f"device profile {point['device_profile']}")
    if point["encode_ms"] > 0:
        words.append(f"encoding counted ({point['encode_ms']:.1f} ms)")
    if base["method"] == "tensor" and sequence is not None:
        volume = base["formula_bytes"] / sequence["formula_bytes"]
        if abs(volume / PAPER_TENSOR_VOLUME - 1) > 0.01:  # a ring all-reduce receives 4 times as much
            words.append(f"for tensor the paper counts {PAPER_TENSOR_VOLUME}x sequence's bits, here {volume:.3g}x")
    if base["method"] == "block" and sequence is not None:
        gathers = base["formula_bytes"] / sequence["formula_bytes"] * base["layers"]
        if abs(gathers / PAPER_BLOCK_GATHERS - 1) > 0.01:
            words.append(f"block gathers all embeddings {PAPER_BLOCK_GATHERS}x there (Nb), here {gathers:.3g}x")
    if point["delay_ms"] > 0:
        words.append(f"link delay {point['delay_ms']:g} ms")
    if point["time_scale"] != 1 and pd.notna(point["time_scale"]):
        words.append(f"time scale {point['time_scale']:g}")
    if point["degraded"] or base["degraded"]:
        words.append("degraded fidelity")
    return words
