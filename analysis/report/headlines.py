"""The main results of a run in sentences. Each one names the point, its conditions and its spread."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.accuracy import SETTINGS, TRAINED, UNCOMPRESSED, fixed_variants, results
from analysis.describe import by_corpus, evaluated_on, is_analytic, metric, metric_sign, setting
from analysis.incast import incast_sentences
from analysis.links import (
    DEFAULT_SHAPER,
    LARGE_BYTES,
    TOLERANCE_TEXT,
    is_large,
    messages,
    of_degraded,
    without_incast,
)
from analysis.load import schema_of
from analysis.points import points
from analysis.segments import segment_sentences
from analysis.text_table import number
from testbed.results.schema import ACCURACY, ANALYTIC, BASELINE, FIDELITY, LATENCY, SEGMENT


def headlines(frame: pd.DataFrame) -> list[str]:
    """Sentences about the rows of one run.

    No sentence about latencies rests on a degraded point, and no speed-up on a degraded ``single``; sentences say how
    many there are. Sentences about links, which say how good they are, name degraded points.
    """
    kinds = {LATENCY: _latency, FIDELITY: _fidelity, ACCURACY: _quality, SEGMENT: segment_sentences}
    return list(kinds[schema_of(frame)](frame))


def _latency(frame: pd.DataFrame) -> Iterator[str]:
    if is_analytic(frame):
        yield "Nothing was measured: every number here is from the cost model."
        return
    table = points(frame[frame["compute_mode"] != ANALYTIC])
    if table.empty:
        yield "No point has a result."
        return
    sound = table[~table["degraded"]]
    single = sound[sound["method"] == BASELINE]["latency_ms"]
    if len(single):
        yield f"One device needs {number(single.median())} ms ({setting(frame[frame['method'] == BASELINE])})."
    elif (table["method"] == BASELINE).any():
        yield f"How long one device needs is not said: every {BASELINE} is degraded."
    fast = table[(table["method"] != BASELINE) & table["speedup"].notna()]
    parallel = fast[~fast["speedup_degraded"]]
    bandwidths = sorted(fast["bandwidth_mbps"].dropna())
    for bandwidth in dict.fromkeys([*bandwidths[:1], *bandwidths[-1:]]):
        here = parallel[parallel["bandwidth_mbps"] == bandwidth].sort_values("speedup", ascending=False)
        if here.empty:
            yield f"At {bandwidth:g} Mbps nothing is said: every speed-up there is degraded."
            continue
        left_out = (fast["speedup_degraded"] & (fast["bandwidth_mbps"] == bandwidth)).any()
        yield from _at(here, bandwidth, " of the points that are not degraded" if left_out else "")
    if compared := int((fast["speedup_degraded"] & ~fast["degraded"]).sum()):
        yield (
            f"{compared} of {len(fast)} speed-ups are degraded because the {BASELINE} that they are over is; the "
            "sentences here leave them out."
        )
    if degraded := int(table["degraded"].sum()):
        yield (
            f"{degraded} of {len(table)} points are degraded: links or cores did not deliver what they emulate. Tables "
            "and figures mark these points; the sentences here leave them out."
        )
    lost = frame[frame["status"] != "ok"][list(LATENCY.keys)].drop_duplicates()
    if len(lost):
        yield f"{len(lost)} points have no result."
    if not table["verified"].all() and len(table):
        yield "This run did not compare all outputs with the reference model; the tables show which ones."


def _at(here: pd.DataFrame, bandwidth: float, among: str) -> Iterator[str]:
    """The fastest point at one bandwidth in Mbps, and the points slower than one device. among: words after fastest."""
    best = here.iloc[0]
    spread = f"range {number(best['speedup_min'])} to {number(best['speedup_max'])} over {best['repeats']} repeats"
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
    """The numbers of devices and tokens, if several were run. always: name the number of devices in any case."""
    devices = f" on {row['devices']:g} devices" if always or here["devices"].nunique() > 1 else ""
    return devices + (f" with {row['tokens']:g} tokens" if here["tokens"].nunique() > 1 else "")


def _fidelity(frame: pd.DataFrame) -> Iterator[str]:
    yield from (incast := incast_sentences(frame))
    table = without_incast(messages(frame))
    table = table[(table["shaper"] == DEFAULT_SHAPER) & is_large(table)]
    if table.empty and not incast:
        yield f"No message of {LARGE_BYTES:,} B or more was sent over links of shaper {DEFAULT_SHAPER}."
    for (devices, rate), link in table.dropna(subset="ratio").groupby(["devices", "rate_mbps"]):  # pyright: ignore
        worst = link["ratio"].loc[(link["ratio"] - 1).abs().idxmax()]
        needed = link["needed_time_scale"].max(skipna=False)
        scale = "no time_scale" if pd.isna(needed) else "real time" if needed <= 1 else f"time_scale={needed:g}"
        yield (
            f"{devices:g} devices at {rate:g} Mbps: messages of {LARGE_BYTES:,} B and more take {worst:.2f} times "
            f"their ideal time at worst{of_degraded(link)}; {scale} is enough for the tolerance ({TOLERANCE_TEXT})."
        )


def _quality(frame: pd.DataFrame) -> Iterator[str]:
    for part in by_corpus(frame):
        yield from _quality_on(part)


def _quality_on(frame: pd.DataFrame) -> Iterator[str]:
    rows = frame[(frame["status"] == "ok")]
    baseline = rows[rows["stage"] == UNCOMPRESSED]
    if len(baseline):
        yield f"The uncompressed baseline has {metric(frame)} {baseline['value'].mean():.2f} ({evaluated_on(frame)})."
    unit = "%" if metric_sign(frame) < 0 else " points"
    numbers = ["change", "bits_per_token", "compression"]  # rows of another version lack them
    table = results(fixed_variants(frame)).dropna(subset=numbers)
    fine_tuned, compressed = table[table["stage"] == TRAINED], table[table["stage"] != UNCOMPRESSED]
    shown, how = (fine_tuned, "fine-tuned") if len(fine_tuned) else (compressed, "not fine-tuned")
    if shown.empty and len(_variants(rows.dropna(subset=numbers))):
        yield "No result of the variant that sentences are about; the tables have those of the others."
    for label, of in shown.groupby("label", sort=False):
        row = of.sort_values("devices").iloc[-1]
        interval = f"95% interval {row['change_low']:+.2f} to {row['change_high']:+.2f}"
        over = f"{row['seeds']} seeds" if row["seeds"] > 1 else "the examples of one seed"
        yield (
            f"With {label} ({number(row['bits_per_token'])} bits per token and layer, {row['compression']:,.0f} times "
            f"fewer) and {row['devices']:g} devices, {how}: {metric(frame)} {row['value']:.2f}, a change of "
            f"{row['change']:+.2f}{unit} ({interval} over {over})."
        )
    if len(shown) and (others := len(_variants(rows)) - len(_variants(fixed_variants(rows)))):
        yield (
            f"{others} more variants are in the tables. These sentences are about the variant that was fixed before "
            "any was measured, with each number of groups and each codebook size."
        )


def _variants(rows: pd.DataFrame) -> pd.DataFrame:
    """The compressed variants of these rows."""
    names = [name for name in (*SETTINGS, "stage") if name in rows]
    return rows.loc[rows["stage"] != UNCOMPRESSED, names].drop_duplicates()
