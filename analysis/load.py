"""Read the rows of one run, and name what each row is a measurement of.

Rows are tidy: one per point of the grid and repeat. Columns and units are those of ``testbed.results.schema``.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.older_rows import in_todays_words
from testbed.errors import TestbedError, printable
from testbed.results.attempts import kept
from testbed.results.schema import LATENCY, SCHEMAS, RowSchema, with_speedup

# Order in tables and legends: the reference, the exact methods, then the one that quantizes.
METHOD_ORDER = ("single", "tensor", "megatron_sp", "galaxy", "sequence", "ring", "block", "prism", "pipeline", "astra")

# Settings that name a variant of a method where a run has more than one of them, and how they are written.
FACETS: dict[str, str] = {column.name: column.label for column in LATENCY.described if column.label}
# One device has no links and no peers, so these do not make it another variant.
NOT_FOR_SINGLE = frozenset(LATENCY.names(lambda column: column.of_links))

SIZES = ("devices", "tokens")  # axes of their own, beside bandwidth

MODES = ("execute", "hold", "replay", "analytic", "")  # of computation, in the order of tables
SHOWN_COLUMNS = 6  # of a file that is none of ours
NO_NUMBER = "its {} is not a number"  # why a row that says ok has no result


class ResultsError(TestbedError):
    """A results folder that cannot be read: says in one line which file and what is wrong with it."""


def load_rows(folder: Path | str, every_attempt: bool = False) -> pd.DataFrame:
    """The kept rows of a results folder, from results.parquet or else results.csv, with one dtype per column.

    every_attempt: the rows of attempts that are not kept too (``testbed.results.attempts``).
    Numbers are floats (missing: NaN), ``verified`` is a nullable boolean, text is str (missing: ""), and no text is
    read as a missing value: a model may be called NA. Columns that an older version did not write are empty
    (``unwritten`` names them), or what its rows could only have been. A row with status ok that lacks what was measured
    is given status failed, and NO_NUMBER as its error.
    Raises ResultsError for a missing folder or file, an unreadable or empty file, rows of something else, missing
    columns without which nothing can be shown, and values that cannot be.
    """
    folder = Path(folder)
    path = results_file(folder)
    if path is None:
        kind = "a file; name the folder that it lies in" if os.path.isfile(folder) else "no such folder"
        reason = "no results.parquet or results.csv in it" if os.path.isdir(folder) else kind
        raise ResultsError(f"{folder}: {reason}; run an experiment first, e.g. make smoke")
    try:
        if path.suffix == ".parquet":
            raw = pd.read_parquet(path, page_checksum_verification=True)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows that are longer than the header
                raw = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        raw = in_todays_words(raw)
        schema = schema_of(raw)
        missing = [name for name in schema.columns if name in needed(schema) and name not in raw.columns]
        older = raw.assign(**{name: schema.only_choices.get(name) for name in schema.columns if name not in raw})
        rows = _completed(normalize(older, schema), raw) if not missing else raw
    except Exception as fault:  # pandas and pyarrow let every kind through, RecursionError and KeyError among them
        reason = printable(str(fault).partition("\n")[0])
        raise ResultsError(f"{path}: cannot be read ({reason})") from fault
    if missing:
        if 2 * len(missing) > len(needed(schema)):
            raise ResultsError(f"{path}: not results of this testbed, by its columns: {_shown(raw)}")
        raise ResultsError(f"{path}: lacks the columns {', '.join(missing)}; written by another version?")
    if rows.empty:
        raise ResultsError(f"{path}: has no rows; the run ended before its first point")
    _check_values(rows, path)
    rows = rows if every_attempt else rows[kept(rows)].reset_index(drop=True)
    if rows.empty:
        raise ResultsError(f"{path}: none of its rows is of an attempt that is kept")
    return rows


def _shown(raw: pd.DataFrame) -> str:
    """The first names of a foreign file's columns."""
    names = [printable(str(name)) for name in raw.columns[:SHOWN_COLUMNS]]
    return ", ".join([*names, *(["..."] if len(raw.columns) > SHOWN_COLUMNS else [])])


def results_file(folder: Path) -> Path | None:
    """The file that a folder's rows are read from; None if it has none."""
    files = (folder / name for name in ("results.parquet", "results.csv"))
    return next((file for file in files if os.path.isfile(file)), None)


def needed(schema: RowSchema) -> set[str]:
    """The columns without which rows say nothing: what tells points apart, what was measured, and whether it was."""
    return {*schema.names(lambda column: column.needed), schema.measured}


def _completed(rows: pd.DataFrame, raw: pd.DataFrame) -> pd.DataFrame:
    """The rows with the fidelity of speed-ups, which older rows lack, and without results that are no numbers."""
    schema = schema_of(rows)
    if schema is LATENCY and "speedup_fidelity" not in raw:
        rows = rows.assign(speedup_fidelity=with_speedup(rows)["speedup_fidelity"].astype(object).fillna(""))
    lost = (rows["status"] == "ok") & rows[schema.measured].isna()
    rows.loc[lost, ["status", "error"]] = ["failed", NO_NUMBER.format(schema.measured)]
    return rows


def unwritten(rows: pd.DataFrame) -> list[str]:
    """Columns that no row of a run fills although every finished row would: those of another version, mostly."""
    schema = schema_of(rows)
    done = rows[rows["status"] == "ok"]
    always = [name for name in schema.names(lambda column: column.always) if done[name].replace("", None).isna().all()]
    return always if len(done) else []


def _check_values(rows: pd.DataFrame, path: Path) -> None:
    """ResultsError for the first value that cannot be."""
    for column in schema_of(rows).described:
        name = column.name
        if name == "compute_mode":
            wrong, allowed = ~rows[name].isin(MODES), ", ".join(filter(None, MODES))
        elif not column.is_number or not column.bounded:
            continue
        else:
            least, most = column.limits
            wrong, allowed = rows[name].notna() & ~rows[name].between(least, most), f"{least:g} to {most:g}"
        for row, value in rows.loc[wrong, name].head(1).items():
            raise ResultsError(f"{path}: {name}={printable(str(value))} in row {row}; allowed: {allowed}")


def schema_of(frame: pd.DataFrame) -> RowSchema:
    """The kind of rows that a frame has: it lacks the fewest needed columns of it, and then the fewest of all.

    Older rows lack many columns of today, so all columns alone would not tell their kind.
    """
    names = set(frame.columns)
    return min(SCHEMAS, key=lambda schema: (len(needed(schema) - names), len(set(schema.columns) - names)))


def normalize(raw: pd.DataFrame, schema: RowSchema = LATENCY) -> pd.DataFrame:
    """The same rows with the dtypes that ``load_rows`` promises. CSV and Parquet give equal frames."""
    columns: dict[str, Any] = {}
    for name, kind in schema.columns.items():
        values = raw[name]
        if kind == "string":
            columns[name] = values.astype(object).where(values.notna(), "").astype(str).map(printable)
        elif kind == "boolean":
            columns[name] = values.map(_truth).astype("boolean")
        else:
            columns[name] = pd.to_numeric(values, errors="coerce").astype(float)
    return pd.DataFrame(columns).reset_index(drop=True)


def manifest_runs(folder: Path | str) -> list[dict[str, Any]]:
    """The entries of manifest.json, one for each run that measured rows; none where it is missing or damaged.

    What is in an entry is not checked: ``fact`` reads it.
    """
    try:
        manifest = json.loads((Path(folder) / "manifest.json").read_text("utf-8"))
        runs = manifest.get("runs", [manifest])  # the first version had one entry, and no list
        return [run for run in runs if isinstance(run, dict) and run]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):  # no table depends on it
        return []


def fact(entry: Mapping[str, Any], *path: str) -> str:
    """What a manifest's entry has under nested keys, as one printable line; "" for what is not there."""
    value: Any = entry
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return "" if value is None else printable(str(value))


def revisions(folder: Path | str) -> list[str]:
    """Code revisions that measured the rows, in their order; none where manifest.json is missing or damaged."""
    found = [fact(run, "git_sha") for run in manifest_runs(folder) if isinstance(run.get("git_sha"), str)]
    return list(dict.fromkeys(filter(None, found)))


def label(row: Mapping[Any, Any] | pd.Series, facets: Sequence[str] = ()) -> str:
    """What a row measures, in a few words: ``astra G=16``, ``sequence gather=kv int8``.

    Settings that are not the standard ones, and a codec that is not, are always written; ``facets``: columns
    that are too.
    """
    words = [str(row["method"])]
    if pd.notna(row["groups"]) and row["groups"] > 0:
        words.append(f"G={row['groups']:g}")
    shown = [name for name in facets if name not in ("settings", "codec")]
    if pd.notna(row["settings"]):
        words.append(str(row["settings"]))
    if "codec" in facets or row["codec"] not in ("fp32", "vq", "none"):
        words.append(str(row["codec"]))  # the name alone stands for whole numbers on the wire
    words += [FACETS[name].format(row[name]) for name in shown if pd.notna(row[name]) and row[name] != ""]
    return " ".join(filter(None, words))


def with_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a ``label`` column that tells apart all that one method was measured as.

    ``variant`` is the label without the numbers of devices and tokens.
    """
    facets = {str(method): _varying(rows, str(method)) for method, rows in frame.groupby("method")}
    labels = [label(row, facets[row["method"]]) for _, row in frame.iterrows()]
    others = {method: [name for name in names if name not in SIZES] for method, names in facets.items()}
    variants = [label(row, others[row["method"]]) for _, row in frame.iterrows()]
    return frame.assign(label=labels, variant=variants)


def method_rank(method: str) -> float:
    """Position of a method in tables; a method unknown here comes just before astra."""
    return METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER) - 1.5


def _varying(rows: pd.DataFrame, method: str) -> list[str]:
    """Facets with more than one value that those already taken do not determine."""
    # A point that failed early may lack settings; that is no variant.
    rows = rows[["groups", "bandwidth_mbps", *FACETS]].drop_duplicates().replace("", None)
    rows = rows.assign(settings=rows["settings"].fillna(""))  # none is the standard one, and so a value
    taken: list[str] = []
    for name in FACETS:
        if (method == "single" and name in NOT_FOR_SINGLE) or rows[name].nunique() < 2:
            continue
        # One run may have chosen another time scale for each point: then none of them is a variant.
        same = ["groups", *taken, *(["bandwidth_mbps"] if name == "time_scale" else [])]
        if rows.groupby(same, dropna=False)[name].nunique().max() > 1:
            taken.append(name)
    return taken


def _truth(value: object) -> bool | None:
    if value is None or value is pd.NA or value == "" or (isinstance(value, float) and value != value):
        return None
    return str(value).strip().lower() in {"true", "1", "1.0"}
