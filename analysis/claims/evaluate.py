"""Figures of kept rows, and whether a claim holds for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.claims.conditions import DEGRADED, ONE, SPEEDUP_ONE, column, points_of, select
from analysis.claims.document import CLAIMS, Claim, ClaimsError, Condition, Document, Figure
from analysis.load import load_rows, schema_of
from testbed.errors import nearest
from testbed.results.kept_runs import KeptRun, earlier_revision

TAKE = ("only", "median", "min", "max", "count")


@dataclass(frozen=True)
class Quoted:
    """A number from rows.

    degraded: whether one of its points is, so that it is no evidence. one: whether the spread of one is not known.
    """

    number: float
    degraded: bool = False
    one: bool = False


@dataclass(frozen=True)
class Kept:
    """A kept run, read when it is first needed."""

    run: KeptRun

    @cached_property
    def points(self) -> pd.DataFrame:
        """Its points. Raises ResultsError if its rows cannot be read."""
        return points_of(load_rows(self.run.path))

    @cached_property
    def measured(self) -> str:
        """The date of rows of an earlier revision; '' if today's code measured them all."""
        return earlier_revision(self.run.path)


class Evaluation:
    """Evaluates the claims of a document. Rows of a run are read once."""

    def __init__(self, document: Document):
        self.document = document
        self.kept = {name: Kept(run) for name, run in document.runs.items()}
        self._values: dict[str, dict[str, Quoted]] = {}

    def values(self, claim: Claim) -> Mapping[str, Quoted]:
        """The named figures of a claim. Raises ClaimsError where its rows have none."""
        if claim.id not in self._values:
            found: dict[str, Quoted] = {}
            for name, figure in claim.values.items():
                found[name] = self._figure(claim, figure, found, f"{CLAIMS}: {claim.id}.values.{name}")
            self._values[claim.id] = found
        return self._values[claim.id]

    def broken(self, claim: Claim) -> list[str]:
        """What does not hold, one text for each condition; none if the claim holds."""
        return [
            text for number, condition in enumerate(claim.holds) if (text := self._broken(claim, number, condition))
        ]

    def points(self, claim: Claim, of: str, place: str) -> pd.DataFrame:
        """The points of a run of a claim; its only run if ``of`` is empty."""
        if not of and len(claim.rows) != 1:
            raise ClaimsError(f"{place}: of is missing; allowed: {', '.join(claim.rows)}")
        return self.kept[of or claim.rows[0]].points

    def earlier(self, claim: Claim) -> dict[str, str]:
        """Run -> date for the runs of a claim whose rows are of an earlier revision."""
        return {name: date for name in claim.rows if (date := self.kept[name].measured)}

    def _figure(self, claim: Claim, figure: Figure, before: Mapping[str, Quoted], place: str) -> Quoted:
        if figure.ratio or figure.difference:
            names = figure.ratio or figure.difference
            if len(names) != 2 or figure.of or figure.where or figure.column:
                raise ClaimsError(f"{place}: ratio and difference have two names of figures, and nothing else")
            first, second = (_named(before, name, place) for name in names)
            if figure.ratio and not second.number:
                raise ClaimsError(f"{place}: {names[1]} is 0")
            number = first.number / second.number if figure.ratio else first.number - second.number
            return Quoted(number, first.degraded or second.degraded, first.one or second.one)
        points = self.points(claim, figure.of, place)
        return taken(select(points, figure.where, place), points, figure, place)

    def _broken(self, claim: Claim, number: int, condition: Condition) -> str:
        place = f"{CLAIMS}: {claim.id}.holds[{number}]"
        quantifiers = {name: getattr(condition, name) for name in ("every", "some", "none")}
        given = [(name, wanted) for name, wanted in quantifiers.items() if wanted is not None]
        if len(given) + bool(condition.value) + bool(condition.increasing) != 1:
            raise ClaimsError(f"{place}: needs one of every, some, none, value and increasing")
        if condition.increasing:
            found = [_named(self.values(claim), name, place).number for name in condition.increasing]
            rises = all(low < high for low, high in zip(found, found[1:], strict=False))
            return "" if rises else f"not increasing: {', '.join(condition.increasing)} = {_shown(found)}"
        if condition.value:
            value = _named(self.values(claim), condition.value, place).number
            low, high = (end if end is not None else sign * math.inf for end, sign in _ends(condition, place))
            return "" if low <= value <= high else f"{condition.value} = {value:g}, not from {low:g} to {high:g}"
        ((quantifier, wanted),) = given
        among = select(self.points(claim, condition.of, place), condition.among, place)
        if among.empty:
            raise ClaimsError(f"{place}: no point is among {dict(condition.among)}")
        fit = select(among, wanted, place)
        holds = {"every": len(fit) == len(among), "some": len(fit) > 0, "none": fit.empty}[quantifier]
        return "" if holds else f"{quantifier} of {len(among)} points: {dict(wanted)}: true of {len(fit)}"


def _ends(condition: Condition, place: str) -> list[tuple[float | None, int]]:
    ends = [(condition.lowest, -1), (condition.highest, 1)]
    if all(end is None for end, _ in ends) or not all(isinstance(end, int | float | None) for end, _ in ends):
        raise ClaimsError(f"{place}: {condition.value} needs from or to, which are numbers")
    return ends


def _named(values: Mapping[str, Quoted], name: str, place: str) -> Quoted:
    if name not in values:
        raise ClaimsError(f"{place}: {name}: {nearest(name, values)}")
    return values[name]


def _shown(numbers: list[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)


def taken(found: pd.DataFrame, points: pd.DataFrame, figure: Figure, place: str) -> Quoted:
    """The figure of the points ``found``. points: all of the run, among which ``against`` is looked for."""
    if figure.take not in TAKE:
        raise ClaimsError(f"{place}.take: {figure.take}: {nearest(figure.take, TAKE)}")
    if figure.take == "count":
        return Quoted(float(len(found)))
    if found.empty or (figure.take == "only" and len(found) > 1):
        wanted = "exactly one" if figure.take == "only" else "at least one"
        raise ClaimsError(f"{place}: {len(found)} points fit {dict(figure.where)}; allowed: {wanted}")
    degraded = bool(found[DEGRADED].any())
    numbers = _numbers(found, figure.column, place)
    if figure.over:
        numbers = numbers / _numbers(found, figure.over, place)
    if figure.against:
        others = _against(found, points, figure.against, place)
        degraded |= bool(others[DEGRADED].any())
        numbers = 100 * (numbers / _numbers(others, figure.column, place).to_numpy() - 1)
    if numbers.isna().any():
        raise ClaimsError(f"{place}: {figure.column} is missing in {int(numbers.isna().sum())} of {len(found)} points")
    flag = SPEEDUP_ONE if figure.column == "speedup" else ONE
    one = bool(found[flag].any()) if flag in found else False
    return Quoted(float(numbers.iloc[0] if figure.take == "only" else numbers.agg(figure.take)), degraded, one)


def _numbers(points: pd.DataFrame, name: str, place: str) -> pd.Series:
    series = column(points, name, place)
    if not pd.api.types.is_numeric_dtype(series):
        raise ClaimsError(f"{place}.column: {name} holds no numbers")
    return series.astype(float)


def _against(found: pd.DataFrame, points: pd.DataFrame, changed: Mapping[str, Any], place: str) -> pd.DataFrame:
    """For each point found, the point that is the same except for the columns ``changed``."""
    keys = [name for name in schema_of(points).keys if name not in changed]
    others = select(points, changed, place)
    lines = found[keys].merge(others, on=keys, how="left", validate="many_to_one", indicator=True)
    if (lines["_merge"] != "both").any():
        raise ClaimsError(f"{place}: a point has none beside it with {dict(changed)}")
    return lines
