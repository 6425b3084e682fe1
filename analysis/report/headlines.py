"""What a run found, in sentences that hold without the tables: which point, how sure, measured how."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.accuracy import TRAINED, UNCOMPRESSED
from analysis.describe import better_up, by_corpus, is_analytic, judged_on, metric, setting
from analysis.incast import cliffs
from analysis.links import DEFAULT, LARGE_BYTES, is_large, messages, promised
from analysis.load import schema_of
from analysis.points import points
from analysis.text_table import number
from testbed.results.schema import ACCURACY, ANALYTIC, BASELINE, FIDELITY, LATENCY


def headlines(frame: pd.DataFrame) -> list[str]:
    """The sentences of one run; points of degraded fidelity are left out, and it is said how many these are."""
    return list({LATENCY: _latency, FIDELITY: _fidelity, ACCURACY: _quality}[schema_of(frame)](frame))


def _latency(frame: pd.DataFrame) -> Iterator[str]:
    if is_analytic(frame):
        yield "Nothing was measured: every number here is the cost model's."
        return
    table = points(frame[frame["compute_mode"] != ANALYTIC])
    if table.empty:
        yield "No point has a result."
        return
    sound = table[~table["degraded"]]
    single = sound[sound["method"] == BASELINE]["latency_ms"]
    if len(single):
        yield f"One device needs {number(single.median())} ms ({setting(frame[frame['method'] == BASELINE])})."
    parallel = sound[(sound["method"] != BASELINE) & sound["speedup"].notna()]
    for bandwidth in sorted({parallel["bandwidth_mbps"].min(), parallel["bandwidth_mbps"].max()}):
        here = parallel[parallel["bandwidth_mbps"] == bandwidth].sort_values("speedup", ascending=False)
        left_out = (table["degraded"] & (table["bandwidth_mbps"] == bandwidth)).any()
        yield from _at(here, bandwidth, " of the points that are not degraded" if left_out else "")
    if degraded := int(table["degraded"].sum()):
        yield (
            f"{degraded} of {len(table)} points are degraded: this machine did not give what it emulates. They are "
            "marked everywhere and in none of these sentences."
        )
    lost = frame[frame["status"] != "ok"][list(LATENCY.keys)].drop_duplicates()
    if len(lost):
        yield f"{len(lost)} points have no result."
    if not table["verified"].all() and len(table):
        yield "Some outputs were not compared with the reference model; the tables say which."


def _at(here: pd.DataFrame, bandwidth: float, among: str) -> Iterator[str]:
    """What is fastest at one bandwidth, and what is slower than one device there. among: what of, in words."""
    if not bandwidth > 0 or here.empty:
        return
    best = here.iloc[0]
    spread = f"{number(best['speedup_min'])} to {number(best['speedup_max'])} over {best['repeats']} repeats"
    spread = spread if best["repeats"] > 1 else "one repeat"
    name = f"{best['variant']}{_of(best, here, always=True)}"
    yield (
        f"At {bandwidth:g} Mbps the fastest{among} is {name}: {number(best['latency_ms'])} ms, "
        f"{number(best['speedup'])} times as fast as one device ({spread})."
    )
    slower = here[here["speedup"] < 1]
    if len(slower):
        names = ", ".join(
            f"{row['variant']}{_of(row, here)} ({number(row['speedup'])}x)" for _, row in slower.iterrows()
        )
        yield f"Slower than one device at {bandwidth:g} Mbps: {names}."


def _of(row: pd.Series, here: pd.DataFrame, always: bool = False) -> str:
    """The numbers of devices and tokens, where several were measured. always: that of devices in any case."""
    devices = f" on {row['devices']:g} devices" if always or here["devices"].nunique() > 1 else ""
    return devices + (f" with {row['tokens']:g} tokens" if here["tokens"].nunique() > 1 else "")


def _fidelity(frame: pd.DataFrame) -> Iterator[str]:
    yield from (crowded := cliffs(frame))
    table = promised(messages(frame))
    table = table[(table["shaper"] == DEFAULT) & is_large(table)]
    if table.empty and not crowded:
        yield f"No message of {LARGE_BYTES:,} B or more over links of shaper {DEFAULT}."
    for (devices, rate), link in table.groupby(["devices", "rate_mbps"]):  # pyright: ignore[reportGeneralTypeIssues]
        worst = link["ratio"].loc[(link["ratio"] - 1).abs().idxmax()]
        needed = link["needed_time_scale"].max(skipna=False)
        verdict = "within the tolerance in real time" if needed <= 1 else f"time_scale={needed:g} would do for these"
        yield (
            f"{devices:g} devices at {rate:g} Mbps: messages of {LARGE_BYTES:,} B and more take {worst:.2f} times "
            f"their ideal time at worst; {'no time_scale would do' if pd.isna(needed) else verdict}."
        )


def _quality(frame: pd.DataFrame) -> Iterator[str]:
    for part in by_corpus(frame):
        yield from _quality_on(part)


def _quality_on(frame: pd.DataFrame) -> Iterator[str]:
    rows = frame[(frame["status"] == "ok")]
    original = rows[rows["stage"] == UNCOMPRESSED]
    if len(original):
        yield f"Without compression: {metric(frame)} {original['value'].mean():.2f} ({judged_on(frame)})."
    unit = "%" if better_up(frame) < 0 else " points"
    adapted = rows[rows["stage"] == TRAINED]
    shown, how = (
        (adapted, "adapted") if len(adapted) else (rows[rows["stage"] != UNCOMPRESSED], "codebooks not adapted")
    )
    for (groups, size), of in shown.groupby(["groups", "codebook_size"]):  # pyright: ignore[reportGeneralTypeIssues]
        most = of[of["devices"] == of["devices"].max()]
        best = most.loc[(most["change"] * better_up(frame)).idxmax()]
        ways = f", the best of {len(most)} ways" if len(most) > 1 else ""
        yield (
            f"With G={groups:g}, K={size:g} ({number(best['bits_per_token'])} bits a token and layer, "
            f"{best['compression']:,.0f} times fewer) and {best['devices']:g} devices, {how}{ways}: "
            f"{best['value']:.2f}, a change of {best['change']:+.2f}{unit} "
            f"[{best['change_low']:+.2f}, {best['change_high']:+.2f}]."
        )
