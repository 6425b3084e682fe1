"""The runs that a report is about: their rows, their manifests, and what is to be known before they are trusted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.describe import joined, values
from analysis.load import (
    MEASURED,
    ResultsError,
    fact,
    load_rows,
    manifest_runs,
    results_file,
    schema_of,
    unwritten,
    with_labels,
)
from testbed.results.schema import BASELINE, LATENCY, SAME_CONDITIONS, RowSchema

SET_ASIDE = re.compile(r"-\d{8}T\d{6}\.\d+Z$")  # what resume=false moved out of the way
# What makes two latencies the same thing measured twice, or two points of one curve.
CONDITIONS = (
    *("network", "compute_mode", "device_profile", "time_scale", "model", "layers", "hidden", "tokens", "topology"),
    *("delay_ms", "loss_pct"),
)


CHOSEN = 0.0  # in place of a time scale: there is another one for each point


@dataclass(frozen=True, eq=False)
class Run:
    """One results folder. entries: of its manifest, oldest first. notes: what a reader must know of its rows."""

    folder: Path
    frame: pd.DataFrame
    entries: list[dict[str, Any]]
    notes: list[str]

    @property
    def schema(self) -> RowSchema:
        """The kind of its rows."""
        return schema_of(self.frame)

    @property
    def experiment(self) -> str:
        """What the run called itself."""
        return joined(self.frame, "experiment") or "results"

    @property
    def started(self) -> str:
        """When its last measurements began, as the manifest says; "" if it does not."""
        return max((fact(entry, "started") for entry in self.entries), default="")


def read_run(folder: Path | str) -> Run:
    """A results folder with what is to be said about it. Raises ResultsError as ``load_rows`` does."""
    frame = load_rows(folder)
    notes = []
    if missing := unwritten(frame):
        notes.append(f"no row has {', '.join(missing)}: written by another version; what they would show is left out")
    measured = MEASURED[schema_of(frame)]
    if blank := int(((frame["status"] == "ok") & frame[measured].isna()).sum()):
        notes.append(f"{blank} of {len(frame)} rows have no {measured} that is a number, and are left out")
    if schema_of(frame) is LATENCY:
        frame, more = _checked(frame)
        notes += more
    lost = int((frame["status"] != "ok").sum())
    if lost == len(frame):
        notes.append("no point has a result; what went wrong is in the table of points without a result")
    return Run(Path(folder), frame, manifest_runs(folder), notes)


def _checked(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of latencies, with speed-ups of like against like only, and what is to be said of them."""
    notes = []
    measured = frame[frame["compute_mode"] != "analytic"]
    if measured.groupby(["compute_mode", "time_scale"])["network"].nunique().gt(1).any():
        frame = _speedup_within_networks(frame)
        networks = " and ".join(values(measured, "network"))
        notes.append(
            f"rows of several networks in one file ({networks}): they are labeled apart, and each is compared with "
            f"{BASELINE} of its own network only"
        )
    if not (frame["method"] == BASELINE).any():
        notes.append(f"no rows of {BASELINE}: no speed-up can be shown; run it too, with methods=[{BASELINE},...]")
    elif frame.loc[frame["status"] == "ok", "speedup"].isna().any():
        notes.append(f"some points have no finished point of {BASELINE} beside them, and so no speed-up")
    there = with_labels(frame)[["label", "bandwidth_mbps"]].dropna().drop_duplicates()
    every = there["label"].nunique() * there["bandwidth_mbps"].nunique()
    if gaps := every - len(there):
        notes.append(
            f"{gaps} of {every} points of the grid have no rows: the run was ended early; the same command goes on"
        )
    return frame, notes


def _speedup_within_networks(frame: pd.DataFrame) -> pd.DataFrame:
    """``testbed.results.schema.with_speedup``, the network being one of the conditions that must agree."""
    same = [*SAME_CONDITIONS, "network"]
    ok = frame["status"] == "ok"
    baseline = frame[ok & (frame["method"] == BASELINE)].groupby(same)["latency_ms"].median().rename("baseline_ms")
    of_row = frame.merge(baseline, how="left", left_on=same, right_index=True)["baseline_ms"]
    return frame.assign(speedup=(of_row / frame["latency_ms"]).where(ok))


def find_runs(paths: Iterable[Path | str]) -> tuple[list[Run], list[str]]:
    """The runs in these folders and below them, in the order in which they were measured, and why some cannot be read.

    Below a folder, runs that were set aside by resume=false are left out. Raises ResultsError if nothing can be read.
    """
    folders: dict[Path, Path] = {}
    problems = []
    for path in map(Path, paths):
        found = [path] if results_file(path) or not path.is_dir() else _below(path)
        if not found:
            problems.append(f"{path}: no results in it or below; run an experiment first, e.g. make smoke")
        folders |= {folder.resolve(): folder for folder in found}
    runs = []
    for folder in folders.values():
        try:
            runs.append(read_run(folder))
        except ResultsError as fault:
            problems.append(str(fault))
    if not runs:
        raise ResultsError("; ".join(problems) or "no results named")
    return sorted(runs, key=lambda run: run.started), problems


def _below(path: Path) -> list[Path]:
    files = sorted([*path.glob("**/results.parquet"), *path.glob("**/results.csv")])
    folders = dict.fromkeys(file.parent for file in files)
    return [folder for folder in folders if not any(SET_ASIDE.search(part) for part in folder.parts)]


def of_kind(runs: list[Run], schema: RowSchema) -> list[Run]:
    """The runs with rows of one kind."""
    return [run for run in runs if run.schema is schema]


def alike(runs: list[Run], over: str = "") -> list[pd.DataFrame]:
    """Latency rows of all runs, one frame for each set of CONDITIONS; points of several runs are of the latest.

    over: a condition in which the rows of a frame may differ. Rows of a run that chose a time scale for each point are
    one set.
    """
    frames = [run.frame.assign(run=number) for number, run in enumerate(of_kind(runs, LATENCY))]
    if not frames:
        return []
    rows = pd.concat(frames, ignore_index=True)
    # Points that failed early lack settings; they are no conditions of their own.
    rows = rows[rows["status"] == "ok"]
    scales = rows.groupby(["run", "compute_mode"], dropna=False)["time_scale"]
    rows = rows.assign(pace=scales.transform("max").where(scales.transform("nunique") < 2, CHOSEN))
    names = ["pace" if name == "time_scale" else name for name in CONDITIONS if name != over]
    point = dict.fromkeys([*names, *LATENCY.keys])
    latest = rows.groupby(list(point), dropna=False)["run"].transform("max")
    rows = rows[rows["run"] == latest]
    return [group.drop(columns=["run", "pace"]) for _, group in rows.groupby(names, dropna=False, sort=False)]
