"""The runs of a report: their rows, their manifests, and notes about rows that are missing or unusual."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.describe import joined, values
from analysis.load import (
    NO_NUMBER,
    ResultsError,
    fact,
    load_rows,
    manifest_runs,
    results_file,
    schema_of,
    unwritten,
    with_labels,
)
from testbed.results.schema import BASELINE, LATENCY, RowSchema, with_speedup

SET_ASIDE = re.compile(r"-\d{8}T\d{6}\.\d+Z$")  # names of folders that resume=false moved away
# Columns in which latencies must agree to be repeats of one point or points of one curve.
CONDITIONS = (
    *("network", "compute_mode", "device_profile", "time_scale", "model", "layers", "hidden", "tokens", "topology"),
    *("delay_ms", "loss_pct"),
)
CHOSEN = 0.0  # stands for time scales that a run chose for each point


@dataclass(frozen=True, eq=False)
class Run:
    """A results folder. frame: its rows. entries: of its manifest, oldest first. notes: sentences about its rows."""

    folder: Path
    frame: pd.DataFrame
    entries: list[dict[str, Any]]
    notes: list[str]

    @property
    def schema(self) -> RowSchema:
        """The schema of its rows."""
        return schema_of(self.frame)

    @property
    def experiment(self) -> str:
        """The name of the experiment."""
        return joined(self.frame, "experiment") or "results"

    @property
    def started(self) -> str:
        """When its last measurements began, in ISO 8601, from the manifest; "" if it does not say."""
        return max((fact(entry, "started") for entry in self.entries), default="")


def read_run(folder: Path | str) -> Run:
    """A results folder with notes about its rows. Raises ResultsError as ``load_rows`` does."""
    frame = load_rows(folder)
    notes = []
    if missing := unwritten(frame):
        notes.append(
            f"no row has {', '.join(missing)}: another version of the testbed wrote these rows; results that need "
            "these columns are left out"
        )
    measured = schema_of(frame).measured
    if blank := int((frame["error"] == NO_NUMBER.format(measured)).sum()):
        notes.append(f"{blank} of {len(frame)} rows are left out: their {measured} is not a number")
    if schema_of(frame) is LATENCY:
        frame, more = _checked(frame)
        notes += more
    lost = int((frame["status"] != "ok").sum())
    if lost == len(frame):
        notes.append("no point has a result; the table of points without a result shows the errors")
    return Run(Path(folder), frame, manifest_runs(folder), notes)


def _checked(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Latency rows with speed-ups over ``single`` of the same network only, and notes about them."""
    notes = []
    measured = frame[frame["compute_mode"] != "analytic"]
    if measured.groupby("compute_mode")["network"].nunique().gt(1).any():
        frame = with_speedup(frame).astype({"speedup": float, "speedup_fidelity": object})
        frame = frame.assign(speedup_fidelity=frame["speedup_fidelity"].fillna(""))
        networks = " and ".join(values(measured, "network"))
        notes.append(
            f"the file has rows of several networks ({networks}): labels name the network, and speed-ups are over "
            f"{BASELINE} of the same network"
        )
    if not (frame["method"] == BASELINE).any():
        notes.append(f"no rows of {BASELINE}, so there is no speed-up; run it too, with 'methods=[{BASELINE},...]'")
    elif frame.loc[frame["status"] == "ok", "speedup"].isna().any():
        notes.append(f"some points have no speed-up, because {BASELINE} has no result under their conditions")
    there = with_labels(frame)[["label", "bandwidth_mbps"]].dropna().drop_duplicates()
    every = there["label"].nunique() * there["bandwidth_mbps"].nunique()
    if gaps := every - len(there):
        notes.append(
            f"{gaps} of {every} points of the grid have no rows: the run ended early; the same command continues it"
        )
    return frame, notes


def find_runs(paths: Iterable[Path | str]) -> tuple[list[Run], list[str]]:
    """Runs in these folders and below them, in the order of measurement, and a line for each folder without any.

    Runs that resume=false moved away are left out, unless they are named. Raises ResultsError if no run can be read.
    """
    folders: dict[str, Path] = {}
    problems = []
    for path in map(Path, paths):
        found = [path] if results_file(path) or not os.path.isdir(path) else _below(path)
        if not found:
            problems.append(f"{path}: no results in it or below; run an experiment first, e.g. make smoke")
        folders |= {os.path.realpath(folder): folder for folder in found}
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
    """The runs whose rows have this schema."""
    return [run for run in runs if run.schema is schema]


def alike(runs: list[Run], over: str = "") -> list[pd.DataFrame]:
    """Latency rows of all runs, one frame for each set of CONDITIONS.

    A point that several runs measured is taken from the latest one. over: a condition in which rows of a frame may
    differ. Rows of a run that chose a time scale for each point are one set.
    """
    frames = [run.frame.assign(run=number) for number, run in enumerate(of_kind(runs, LATENCY))]
    if not frames:
        return []
    rows = pd.concat(frames, ignore_index=True)
    # Points that failed early lack settings, and must not form sets of their own.
    rows = rows[rows["status"] == "ok"]
    scales = rows.groupby(["run", "compute_mode"], dropna=False)["time_scale"]
    rows = rows.assign(pace=scales.transform("max").where(scales.transform("nunique") < 2, CHOSEN))
    names = ["pace" if name == "time_scale" else name for name in CONDITIONS if name != over]
    point = dict.fromkeys([*names, *LATENCY.keys])
    latest = rows.groupby(list(point), dropna=False)["run"].transform("max")
    rows = rows[rows["run"] == latest]
    return [group.drop(columns=["run", "pace"]) for _, group in rows.groupby(names, dropna=False, sort=False)]
