"""Segments of forward passes, computed and predicted: a table of errors by kind, and a figure of both times."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator

from analysis.describe import joined
from analysis.panels import STYLE, caption_below, save
from analysis.text_table import TextTable, number, signed_pct

SHORT_US = 20.0  # predictions below are mostly launches, whose time varies
BANDS_PCT = (10, 25)  # targets: of the median error, of its 95th percentile
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def errors(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with a result that compute, with ``error_pct``: prediction over measurement, minus 1; and ``short``."""
    rows = frame[(frame["status"] == "ok") & frame["measured_us"].notna()]
    rows = rows[rows["computes"].fillna(True).astype(bool)]
    error = 100 * (rows["predicted_us"] / rows["measured_us"] - 1)
    return rows.assign(error_pct=error, short=rows["predicted_us"] < SHORT_US)


def segment_tables(frame: pd.DataFrame) -> list[TextTable]:
    """Errors of the device profile's predictions by kind of segment, those of short segments, and failed points."""
    table = errors(frame)
    long, short = table[~table["short"]], table[table["short"]]
    untimed = int((~frame["computes"].fillna(True).astype(bool) & (frame["status"] == "ok")).sum())
    notes = [
        "segments: different ones of the kind, in all variants and numbers of tokens; each is the median of its runs",
        "error: predicted over measured time, minus 1; median, p95: of its absolute value; signed: its median",
        f"targets: all kinds together have a median below {BANDS_PCT[0]}% and a p95 below {BANDS_PCT[1]}%",
        f"{len(short)} segments are predicted to take less than {SHORT_US:g} us and are in a table of their own",
    ]
    untimed_note = f"{untimed} sums are not here: the transport has added them up, so there is nothing to time"
    notes += [untimed_note] if untimed else []
    if long["measured_us"].sum() > 0:
        spent = (long[name] * long["runs"] for name in ("predicted_us", "measured_us"))
        notes.append(f"all of these together, as often as they ran: predicted {_over(*(each.sum() for each in spent))}")
    notes.append(_load(frame))
    tables = [
        _errors_table(f"Predicted times of segments ({_where(frame)})", long, notes),
        _errors_table(f"Segments predicted below {SHORT_US:g} us, mostly launches", short, []),
        _failed(frame),
    ]
    return [each for each in tables if each.rows]


def _over(predicted_us: float, measured_us: float) -> str:
    """The error of a sum."""
    return f"{signed_pct(100 * (predicted_us / measured_us - 1))} against the measured time"


def _where(frame: pd.DataFrame) -> str:
    threads = joined(frame, "threads", "{} threads")
    return f"profile {joined(frame, 'device_profile')}, on {joined(frame, 'processor')}, {threads}"


def _load(frame: pd.DataFrame) -> str:
    """What other programs and the host took during the points."""
    foreign, steal = frame["foreign_pct"].dropna(), frame["steal_pct"].dropna()
    if foreign.empty:
        return "processor time of other programs: not known"
    stolen = f", CPU steal {steal.median():.0f}%" if len(steal) else ""
    return (
        f"during the points other programs used {foreign.median():.0f}% of the cores (median; at most "
        f"{foreign.max():.0f}%){stolen}"
    )


def _errors_table(title: str, table: pd.DataFrame, notes: list[str]) -> TextTable:
    rows = [_line(str(kind), of) for kind, of in table.groupby("segment")]
    rows += [_line("all kinds", table)] if len(rows) > 1 else []
    columns = ["segment", "segments", "measured, us", "median", "p95", "signed"]
    return TextTable(title, columns, rows, notes)


def _line(kind: str, of: pd.DataFrame) -> list[str]:
    error = of["error_pct"].abs()
    shortest, longest = number(of["measured_us"].min()), number(of["measured_us"].max())
    span = shortest if len(of) == 1 else f"{shortest} to {longest}"
    middle, high = f"{error.median():.1f}%", f"{np.percentile(error, 95):.1f}%"
    return [kind, f"{len(of)}", span, middle, high, signed_pct(of["error_pct"].median())]


def _failed(frame: pd.DataFrame) -> TextTable:
    lost = frame[frame["status"] != "ok"]
    rows = [[str(row["variant"]), f"{row['tokens']:g}", str(row["error"])] for _, row in lost.iterrows()]
    return TextTable("Points without a result", ["variant", "tokens", "error"], rows, left=frozenset({"error"}))


def segment_sentences(frame: pd.DataFrame) -> list[str]:
    """How far predictions are from measurements, over all segments that are not short."""
    table = errors(frame)
    long = table[~table["short"]]
    if long.empty:
        return ["No segment was computed that is long enough to compare."]
    error = long["error_pct"].abs()
    worst = long.groupby("segment")["error_pct"].agg(lambda of: of.abs().median()).sort_values(ascending=False)
    named = ", ".join(f"{kind} ({value:.0f}%)" for kind, value in worst.head(3).items())
    return [
        f"Over {len(long)} segments of {long['segment'].nunique()} kinds, predictions are off by {error.median():.1f}% "
        f"in the median and {np.percentile(error, 95):.1f}% in the 95th percentile ({_where(frame)}).",
        f"The kinds with the largest median errors: {named}.",
    ]


def segment_figure(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Predicted against measured time of each segment, both logarithmic, with bands of BANDS_PCT around equality.

    Writes segments.png and segments.pdf to ``out_dir``. Returns these files; none without segments.
    """
    table = errors(frame)
    table = table[table["predicted_us"] > 0]
    if table.empty:
        return []
    owners = table["segment"].str.partition(":")[0]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(6.6, 4.8), layout="constrained")
        ends = np.array([table["measured_us"].min() / 1.5, table["measured_us"].max() * 1.5])
        for band, alpha in zip(BANDS_PCT[::-1], (0.15, 0.3), strict=True):
            low, high = (ends * (1 + sign * band / 100) for sign in (-1, 1))
            axes.fill_between(ends, low, high, color="#888888", alpha=alpha, linewidth=0, label=f"within {band}%")
        axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.axhline(SHORT_US, color="#BBBBBB", linewidth=0.8, linestyle=":")
        for index, (owner, of) in enumerate(table.groupby(owners)):
            color, marker = COLORS[index % len(COLORS)], MARKERS[(index // len(COLORS)) % len(MARKERS)]
            axes.plot(of["measured_us"], of["predicted_us"], marker, color=color, markersize=3.5, label=str(owner))
        for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            scale("log")
            axis.set_major_locator(LogLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e3:g}"))
        axes.set_xlabel("measured, ms")
        axes.set_ylabel("predicted, ms")
        figure.legend(loc="outside right upper")
        caption_below(figure, f"A marker for each segment; {_where(frame)}; dotted: {SHORT_US / 1e3:g} ms.")
    return save(figure, out_dir / "segments")
