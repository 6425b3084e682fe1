"""Which points of a run: conditions on columns, in a vocabulary of five forms.

A condition is a mapping of columns to one of: a value; a list of values; ``{from: 10, to: 100}``, with one or both
ends; a comparison with a number, as ``"< 1"``; ``"not astra"``. All columns must fit. Nothing is evaluated as an
expression, so text of the file can name columns and values only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from analysis.claims.document import ClaimsError
from analysis.load import schema_of
from testbed.errors import nearest
from testbed.results.schema import ANALYTIC, BASELINE, LATENCY, SAME_CONDITIONS

MODES = ("network", "compute_mode")  # conditions of a point that are no keys within a run of one mode
COMPARISON = re.compile(r"(<=|>=|<|>) (-?\d+(?:\.\d+)?)")
COMPARE: dict[str, Callable[[pd.Series, float], pd.Series]] = {
    "<": lambda series, number: series < number,
    "<=": lambda series, number: series <= number,
    ">": lambda series, number: series > number,
    ">=": lambda series, number: series >= number,
}
NOT = "not "
DEGRADED, ONE, SPEEDUP_ONE = "degraded", "one", "speedup_one"


def points_of(rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each point: medians of numbers over its repeats with status ok, and its texts.

    Columns are those of the rows' schema; besides, ``repeats`` is their number and ``degraded`` whether the fidelity of
    any of them is, or that of its speed-up. Latency rows also have ``one``, whether there are fewer than two repeats
    after a warm-up pass, and ``speedup_one``, whether that is true of the point or of its ``single``.
    """
    schema = schema_of(rows)
    keys = [*schema.keys, *(name for name in MODES if name in rows)]
    done = rows[rows["status"] == "ok"]
    fidelity = [name for name in ("fidelity", "speedup_fidelity") if name in done]
    done = done.assign(repeats=1.0, **{DEGRADED: (done[fidelity] == "degraded").any(axis=1)})
    how = {name: "first" for name in done.columns}
    how |= {column.name: "median" for column in schema.described if column.is_number}
    how |= {"repeats": "sum", DEGRADED: "max"}
    grouped = done.groupby(keys, dropna=False, sort=False)
    points = grouped.agg({name: kind for name, kind in how.items() if name not in keys}).reset_index()
    return _with_one(points) if schema is LATENCY else points


def _with_one(points: pd.DataFrame) -> pd.DataFrame:
    one = (points["compute_mode"] != ANALYTIC) & ((points["repeats"] < 2) | (points["warm_up"] == 0))
    points = points.assign(**{ONE: one.astype(bool)})
    single = points[points["method"] == BASELINE].groupby(SAME_CONDITIONS, as_index=False)[[ONE]].any()
    of_single = points[SAME_CONDITIONS].merge(single, how="left", on=SAME_CONDITIONS)[ONE].eq(True)
    return points.assign(**{SPEEDUP_ONE: points[ONE] | of_single.to_numpy()})


def select(points: pd.DataFrame, where: Mapping[str, Any], place: str) -> pd.DataFrame:
    """The points that fit. place: of the condition, for messages. Raises ClaimsError for what no column can be."""
    fits = pd.Series(True, index=points.index)
    for name, wanted in where.items():
        fits &= _fits(column(points, name, place), wanted, f"{place}: {name}")
    return points[fits]


def column(points: pd.DataFrame, name: str, place: str) -> pd.Series:
    """A column of points. Raises ClaimsError with the nearest names if there is none."""
    if name not in points:
        raise ClaimsError(f"{place}: the rows have no column {name}: {nearest(name, map(str, points.columns))}")
    return points[name]


def _fits(series: pd.Series, wanted: object, place: str) -> pd.Series:
    truth = pd.api.types.is_bool_dtype(series)
    numeric = pd.api.types.is_numeric_dtype(series) and not truth
    if isinstance(wanted, list):
        return pd.concat([_fits(series, value, place) for value in wanted], axis=1).any(axis=1)
    if isinstance(wanted, Mapping):
        ends = {key: _number(value, place) for key, value in wanted.items()}
        if not ends or not set(ends) <= {"from", "to"} or not numeric:
            raise ClaimsError(f"{place}={dict(wanted)}: allowed are from and to, of a column of numbers")
        return series.between(ends.get("from", -float("inf")), ends.get("to", float("inf")))
    if isinstance(wanted, str) and numeric:
        found = COMPARISON.fullmatch(wanted)
        if not found:
            raise ClaimsError(f'{place}={wanted}: a column of numbers; allowed: a number, a list, from/to, or as "< 1"')
        return COMPARE[found[1]](series, float(found[2]))
    if isinstance(wanted, str) and wanted.startswith(NOT):
        return series != wanted.removeprefix(NOT)
    kind, name = (bool, "true or false") if truth else ((int, float), "a number") if numeric else (str, "a text")
    if not isinstance(wanted, kind) or (numeric and isinstance(wanted, bool)):
        raise ClaimsError(f"{place}={wanted}: must be {name}")
    return (series == wanted).fillna(False).astype(bool)


def _number(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ClaimsError(f"{place}={value}: must be a number")
    return float(value)
