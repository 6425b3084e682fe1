"""Speed-ups that the paper reports, beside ours. All numbers of the paper come from reported.csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.points import points
from analysis.text_table import TextTable, number, percent, signed_pct
from testbed.results.schema import ANALYTIC

REPORTED_CSV = Path(__file__).parent / "reported.csv"
CONFIGS_CSV = Path(__file__).parent / "configs.csv"
# The workload of the paper's latency figures: 12 layers of width 768, 1024 tokens, 4 devices, K = 1024.
PAPER_SETTING = {"layers": 12, "hidden": 768, "tokens": 1024, "devices": 4, "codebook_size": 1024}
PAPER_PROFILE = "gtx1660ti"
PAPER_TENSOR_VOLUME = 2  # two all-reduces a layer, each counted as one all-gather
PAPER_BLOCK_GATHERS = 1  # Nb of the best speed-up over BP+AG
PAPER_SETTINGS = {"block": f"blocks={PAPER_BLOCK_GATHERS}"}  # of methods that have other defaults here
# Reported metric -> the method in the ratio's numerator.
PAPER_RATIOS = {
    "speedup_over_single": "single",
    "speedup_over_sequence": "sequence",
    "speedup_over_tensor": "tensor",
    "speedup_over_block_ag": "block",
}


def reported_figures(reported_csv: Path | str = REPORTED_CSV) -> pd.DataFrame:
    """The numbers that the paper reports, without numbers that were derived from them.

    Columns: table (of the paper), model, task, setting, method, groups, bandwidth_mbps, devices, tokens, metric, value,
    unit, kind. Empty cells are missing values.
    """
    reported = pd.read_csv(reported_csv, keep_default_na=False, na_values=[""])
    return reported[reported["kind"] == "reported"]


def paper_configs() -> pd.DataFrame:
    """The experiments that measure results of the paper, in the order in which ``make paper`` runs them.

    Columns: config (+experiment=NAME), figures (tables or tasks of ``reported_figures``, separated by spaces; empty if
    the paper's numbers are not known), minutes and quick_minutes (approximate, on two cores; quick: with
    preset=quick), what (in words).
    """
    return pd.read_csv(CONFIGS_CSV, keep_default_na=False)


def paper_comparison(frame: pd.DataFrame, reported_csv: Path | str = REPORTED_CSV) -> pd.DataFrame:
    """Speed-ups of ASTRA that the paper reports beside ours, for the points of these rows in the paper's setting.

    Columns: ratio (in words: astra G=1 over single), bandwidth_mbps, paper, ours, difference_pct, spread_pct (the
    larger one of our two points), why (the conditions that differ from the paper's), reported (the index in
    ``reported_figures``).
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
                    "ratio": f"{point['label']} over {PAPER_RATIOS[figure['metric']]}",
                    "bandwidth_mbps": point["bandwidth_mbps"],
                    "paper": figure["value"],
                    "ours": ratio,
                    "difference_pct": 100 * (ratio / figure["value"] - 1),
                    "spread_pct": pd.Series([point["spread_pct"], base["spread_pct"]]).max(),
                    "reported": index,
                    "why": "; ".join(latency_differences(point, base, counterpart(table, point, "sequence"))),
                }
            )
    columns = ["ratio", "bandwidth_mbps", "paper", "ours", "difference_pct", "spread_pct", "why", "reported"]
    return pd.DataFrame(found, columns=columns)


def paper_ratio_table(frame: pd.DataFrame) -> TextTable:
    """``paper_comparison`` as text; no rows if the rows have no point in the paper's setting."""
    rows = [
        [
            point["ratio"],
            f"{point['bandwidth_mbps']:g}",
            number(point["paper"], "x"),
            number(point["ours"], "x"),
            signed_pct(point["difference_pct"]),
            percent(point["spread_pct"]),
            point["why"],
        ]
        for _, point in paper_comparison(frame).iterrows()
    ]
    columns = ["speed-up", "Mbps", "paper", "ours", "difference", "our spread", "conditions that differ"]
    return TextTable("Speed-ups of the paper beside ours", columns, rows, left=frozenset({columns[-1]}))


def in_paper_setting(table: pd.DataFrame) -> pd.Series:
    """Which of these points have the workload and the devices of PAPER_SETTING, bool [n]."""
    same = pd.Series(True, index=table.index)
    for name, value in PAPER_SETTING.items():
        same &= table[name] == value
    return same & table["optimizations"].fillna("").isin(["paper", ""]) & (table["loss_pct"].fillna(0) == 0)


def counterpart(table: pd.DataFrame, point: pd.Series, method: str) -> pd.Series | None:
    """The same point with another method; None if there is none. Of several codecs and settings, those of the paper."""
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
    """The conditions of two points that differ from the paper's, the most important one first.

    point: of the method. base: of the method in the ratio's numerator. sequence: the same point with ``sequence``.
    """
    words = []
    if point["network"] == ANALYTIC:
        words.append("ours is from the cost model: nothing was measured")
    else:
        words.append(f"the paper divides bits by bandwidth; ours is on network {point['network']}")
    if point["compute_mode"] == "execute":
        words.append("ours computes at the speed of this machine")
    elif point["device_profile"] != PAPER_PROFILE:
        words.append(f"device profile {point['device_profile']}")
    if point["encode_ms"] > 0:
        words.append(f"ours includes encoding ({point['encode_ms']:.1f} ms)")
    if base["method"] == "tensor" and sequence is not None:
        volume = base["formula_bytes"] / sequence["formula_bytes"]
        if abs(volume / PAPER_TENSOR_VOLUME - 1) > 0.01:  # a ring all-reduce receives 4 times as much
            words.append(f"tensor sends {volume:.3g}x the bits of sequence; the paper counts {PAPER_TENSOR_VOLUME}x")
    if base["method"] == "block" and sequence is not None:
        gathers = base["formula_bytes"] / sequence["formula_bytes"] * base["layers"]
        if abs(gathers / PAPER_BLOCK_GATHERS - 1) > 0.01:
            words.append(f"block gathers all embeddings {gathers:.3g}x; the paper {PAPER_BLOCK_GATHERS}x (Nb)")
    if point["delay_ms"] > 0:
        words.append(f"link delay {point['delay_ms']:g} ms")
    if point["time_scale"] != 1 and pd.notna(point["time_scale"]):
        words.append(f"time scale {point['time_scale']:g}")
    if point["degraded"] or base["degraded"]:
        words.append("degraded fidelity")
    if point["one"] or base["one"]:
        words.append("one repeat, or no warm-up")
    return words
