"""Which points changed between two runs of the same grid: ``python -m analysis.compare A B``.

A point counts as changed if two conditions hold. First, the interval of the ratio of medians does not contain 1. The
interval is a percentile bootstrap over repeats (Efron 1979). With three repeats, all repeats of one run must then be
slower than all of the other. By chance alone, that happens to one unchanged point in ten, and with five repeats to one
in twenty-five. Fewer repeats decide nothing. Second, the medians differ by more than NEAR_PCT, because runs differ by
more than the repeats of one run do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.describe import joined
from analysis.load import ResultsError, fact
from analysis.runs import CONDITIONS, Run, read_run
from analysis.text_table import DEGRADED, TextTable, number
from testbed.command import run_command
from testbed.results.schema import ACCURACY, FIDELITY, LATENCY

RESAMPLES, LEVEL = 2000, 0.95
MIN_REPEATS = 3  # of each run; the noise of fewer is not known
LONG_MS, NEAR_PCT, NEAR_MS = 50.0, 3.0, 2.0  # points above LONG_MS repeat within NEAR_PCT, others within NEAR_MS
CHANGED, SAME, ONLY_A, ONLY_B = "changed", "not distinguishable", "only in A", "only in B"
UNITS = {LATENCY: " ms", FIDELITY: " ms", ACCURACY: ""}
INTERVAL_COLUMNS = ("value_low", "value_high")  # of accuracy rows: over test examples, because there are no repeats


def compare(a: Run, b: Run) -> pd.DataFrame:
    """One row for each point of either run.

    Columns: the keys of the rows (and compute_mode if a run has several), a and b (medians over repeats with a result,
    in ms, or accuracies in % or perplexities), repeats_a, repeats_b, ratio = b / a with its 95% interval low and high,
    verdict (CHANGED, SAME, ONLY_A, ONLY_B), near (bool: within NEAR_PCT or NEAR_MS; None if a run lacks the point) and
    degraded (bool: in either run). Raises ResultsError if the runs are of different kinds of experiments.
    """
    if a.schema is not b.schema:
        raise ResultsError(f"{a.folder} and {b.folder}: different kinds of experiments cannot be compared")
    keys = _keys(a, b)
    of_a, of_b = _points(a, keys), _points(b, keys)
    rows = []
    for key in dict.fromkeys([*of_a, *of_b]):
        rows.append(
            dict(zip(keys, key, strict=True)) | _compare_point(of_a.get(key), of_b.get(key), a.schema is ACCURACY)
        )
    return pd.DataFrame(rows)


def _keys(a: Run, b: Run) -> list[str]:
    """The columns that identify a point in both runs."""
    keys = list(a.schema.keys)
    if "compute_mode" in a.schema.columns and max(run.frame["compute_mode"].nunique() for run in (a, b)) > 1:
        keys.append("compute_mode")
    return keys


def _points(run: Run, keys: list[str]) -> dict[tuple[Any, ...], pd.DataFrame]:
    """Key of a point -> its rows with a result."""
    rows = run.frame[run.frame["status"] == "ok"]
    rows = rows.assign(measured=rows[run.schema.measured])
    # NaN does not equal NaN, so a point without a bandwidth would not be found in the other run.
    plain = rows[keys].astype(object).where(rows[keys].notna(), None)
    names = list(plain.itertuples(index=False, name=None))
    return {name: part for name, part in rows.groupby(pd.Series(names, index=rows.index), sort=False)}  # pyright: ignore


def _compare_point(a: pd.DataFrame | None, b: pd.DataFrame | None, has_intervals: bool) -> dict[str, Any]:
    missing = {"a": np.nan, "b": np.nan, "ratio": np.nan, "low": np.nan, "high": np.nan, "near": None}
    parts = [part for part in (a, b) if part is not None]
    degraded = any((part["fidelity"] == "degraded").any() for part in parts if "fidelity" in part)
    counts = {"repeats_a": 0 if a is None else len(a), "repeats_b": 0 if b is None else len(b), "degraded": degraded}
    if a is None or b is None:
        name, part, verdict = ("a", a, ONLY_A) if b is None else ("b", b, ONLY_B)
        assert part is not None
        return missing | counts | {name: part["measured"].median(), "verdict": verdict}
    old, new = float(a["measured"].median()), float(b["measured"].median())
    if has_intervals:
        low, high, known = _from_intervals(a, b)
    else:
        low, high = ratio_interval(a["measured"].to_numpy(), b["measured"].to_numpy())
        known = min(len(a), len(b)) >= MIN_REPEATS
    changed = known and not low <= 1 <= high and (has_intervals or abs(new / old - 1) > NEAR_PCT / 100)
    near = abs(new - old) <= NEAR_MS if old <= LONG_MS else abs(new / old - 1) <= NEAR_PCT / 100
    found = {"a": old, "b": new, "ratio": new / old if old else np.nan, "low": low, "high": high, "near": near}
    return found | counts | {"verdict": CHANGED if changed else SAME}


def ratio_interval(a: np.ndarray, b: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% interval of median(b) / median(a), by the percentile bootstrap over repeats. a: [n], b: [m], all above 0."""
    draw = np.random.default_rng(seed)
    medians = [
        np.median(values[draw.integers(len(values), size=(RESAMPLES, len(values)))], axis=1) for values in (a, b)
    ]
    low, high = np.quantile(medians[1] / medians[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _from_intervals(a: pd.DataFrame, b: pd.DataFrame) -> tuple[float, float, bool]:
    """(low, high, whether they are known) of the ratio, from the intervals of both values.

    They are wider than necessary, because both models are evaluated on the same examples.
    """
    (low_a, high_a), (low_b, high_b) = ([float(part[name].median()) for name in INTERVAL_COLUMNS] for part in (a, b))
    if not low_a > 0:
        return np.nan, np.nan, False
    return low_b / high_a, high_b / low_a, True


def comparison_table(table: pd.DataFrame, a: Run, b: Run) -> TextTable:
    """``compare`` as text: changed points first, then points of one run only, then the others."""
    order = {CHANGED: 0, ONLY_A: 1, ONLY_B: 2, SAME: 3}
    keys = [name for name in _keys(a, b) if table[name].nunique(dropna=False) > 1] or list(_keys(a, b))[:1]
    ranked = table.assign(order=table["verdict"].map(order)).sort_values(["order", *keys])
    unit = UNITS[a.schema]
    rows = []
    for _, row in ranked.iterrows():
        interval = "-" if pd.isna(row["low"]) else f"{row['low']:.3f} to {row['high']:.3f}"
        few = (
            row["verdict"] == SAME
            and min(row["repeats_a"], row["repeats_b"]) < MIN_REPEATS
            and a.schema is not ACCURACY
        )
        rows.append(
            [
                *(_text(row[name]) for name in keys),
                number(row["a"], unit),
                number(row["b"], unit),
                "-" if pd.isna(row["ratio"]) else f"{row['ratio']:.3f}",
                interval,
                f"{row['repeats_a']}, {row['repeats_b']}",
                row["verdict"] + (" (too few repeats)" if few else "") + (DEGRADED if row["degraded"] else ""),
            ]
        )
    notes = [f"{DEGRADED} the point has degraded fidelity in A or B"] if table["degraded"].any() else []
    columns = [*keys, "A", "B", "B / A", "95% interval", "repeats", "verdict"]
    return TextTable("Points of A and B", columns, rows, notes, left=frozenset({"verdict"}))


def _text(value: Any) -> str:
    if pd.isna(value):
        return "-"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)


def repeatability(table: pd.DataFrame) -> list[str]:
    """How many points agree within NEAR_PCT, or within NEAR_MS if they are short: of all, and of those not degraded."""
    both = table[table["near"].notna()]
    lines = []
    for name, part in (
        ("points in both", both),
        ("points without degraded fidelity", both[~both["degraded"].astype(bool)]),
    ):
        long = part["a"] > LONG_MS
        near = part["near"].astype(bool)
        lines.append(
            f"{name}: {near.sum()} of {len(part)} agree (above {LONG_MS:g} ms: {(near & long).sum()} of {long.sum()} "
            f"within {NEAR_PCT:g}%; others: {(near & ~long).sum()} of {(~long).sum()} within {NEAR_MS:g} ms)"
        )
    return lines


def _about(name: str, run: Run) -> str:
    entry = run.entries[-1] if run.entries else {}
    words = [fact(entry, "started"), fact(entry, "git_sha")[:12], joined(run.frame, "network")]
    return f"- {name}: {run.folder} ({', '.join(filter(None, [*words, joined(run.frame, 'compute_mode')]))})"


def conditions_that_differ(a: Run, b: Run) -> list[str]:
    """One line for each condition of the rows, and for the processor, in which two runs differ."""
    names = [name for name in CONDITIONS if name in a.frame and name in b.frame]
    pairs = [(name, joined(a.frame, name), joined(b.frame, name)) for name in names]
    cpus = [fact(run.entries[-1], "cpu") if run.entries else "" for run in (a, b)]
    pairs.append(("cpu", cpus[0], cpus[1]))
    return [
        f"- {name} differs: {old or 'unknown'} in A, {new or 'unknown'} in B" for name, old, new in pairs if old != new
    ]


def report(a: Run, b: Run) -> str:
    """The comparison in Markdown. Raises ResultsError as ``compare`` does."""
    table = compare(a, b)
    lines = ["# Comparison of two runs", "", _about("A", a), _about("B", b), *conditions_that_differ(a, b)]
    lines += [f"- {name}: {note}" for name, run in (("A", a), ("B", b)) for note in run.notes]
    if table.empty:
        return "\n".join([*lines, "", "No point of either run has a result."])
    counts = table["verdict"].value_counts()
    lines += [
        "",
        ", ".join(f"{counts[name]} {name}" for name in (CHANGED, SAME, ONLY_A, ONLY_B) if name in counts) + ".",
    ]
    if a.schema is not ACCURACY:
        lines += ["", *(f"- {line}" for line in repeatability(table))]
    return "\n".join([*lines, "", comparison_table(table, a, b).markdown()])


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns 0, whatever changed, or 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare", description="Which points changed between two runs."
    )
    parser.add_argument("a", type=Path, metavar="A", help="results folder of the first run")
    parser.add_argument("b", type=Path, metavar="B", help="results folder of the second run")
    arguments = parser.parse_args(argv)

    def work() -> int:
        print(report(read_run(arguments.a), read_run(arguments.b)))
        return 0

    return run_command("compare", work)


if __name__ == "__main__":
    sys.exit(main())
