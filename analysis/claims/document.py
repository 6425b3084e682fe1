"""docs/claims.yaml: the claims of README.md, ARTIFACT.md and docs/results.md, and the texts that quote rows.

The file is data. It names rows by the values of their columns, in a vocabulary of a few words
(``analysis.claims.conditions``); no part of it is evaluated as code, and a text can show nothing but figures of rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from testbed.errors import TestbedError, nearest
from testbed.results.kept_runs import KeptRun, kept_runs, yaml_data
from testbed.results.measurement_hash import ROOT

CLAIMS = Path("docs/claims.yaml")  # in the project
IDENTIFIER = re.compile(r"C[1-9]\d*")
FIGURE = re.compile(r"[,+]{0,2}(\.\d)?[fg]")  # how a number is written
Kind = TypeVar("Kind")


class ClaimsError(TestbedError):
    """A claim that cannot be evaluated. The message says which claim, what it says and what is allowed."""


@dataclass(frozen=True)
class Figure:
    """A number from rows.

    of: the run. where: the points, as column -> condition. column: the number; over: divided by this column of the same
    point. take: which of several points: their median, min, max or count; ``only``: exactly one point. against: the
    difference in percent from the point that is the same except for these columns. ratio, difference: of two other
    figures of the claim, by name, instead of all this.
    """

    of: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    column: str = ""
    over: str = ""
    take: str = "only"
    against: Mapping[str, Any] = field(default_factory=dict)
    ratio: Sequence[str] = ()
    difference: Sequence[str] = ()


@dataclass(frozen=True)
class Condition:
    """What must be true.

    every, some, none: conditions on columns of the points ``among`` (of the run ``of``). value: a figure by name, which
    lies from ``from`` to ``to``. increasing: names of figures, each of which is above the one before.
    """

    every: Mapping[str, Any] | None = None
    some: Mapping[str, Any] | None = None
    none: Mapping[str, Any] | None = None
    among: Mapping[str, Any] = field(default_factory=dict)
    of: str = ""
    value: str = ""
    lowest: float | None = None  # key ``from``
    highest: float | None = None  # key ``to``
    increasing: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """A table of figures. A cell is the only point that fits its row, its column and ``where``.

    head: heading of the first column. rows: each with ``label`` and ``where``, and possibly ``of`` and ``texts``
    (cells after the figures). columns: each with ``heading`` and ``where``. texts: headings of these texts.
    interval: columns NAME_low and NAME_high stand behind the figure. gaps: cells without a point are allowed.
    """

    column: str
    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[Mapping[str, Any]]
    of: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    head: str = ""
    format: str = ",.0f"
    unit: str = ""
    interval: bool = False
    gaps: bool = False
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Claim:
    """One claim. rows: names of kept runs; none where the command alone is the check."""

    id: str
    title: str
    sentence: str
    command: str
    expect: str
    tolerance: str
    minutes: int | str
    memory: str
    rows: Sequence[str] = ()
    values: Mapping[str, Figure] = field(default_factory=dict)
    holds: Sequence[Condition] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    deviations: str = ""


@dataclass(frozen=True)
class Document:
    """All claims, the texts around them in ARTIFACT.md, and the generated blocks of pages: page -> name -> text."""

    claims: Mapping[str, Claim]
    artifact: Mapping[str, str]
    pages: Mapping[str, Mapping[str, str]]
    runs: Mapping[str, KeptRun]


def load_document(path: Path | None = None, runs: Mapping[str, KeptRun] | None = None) -> Document:
    """The content of docs/claims.yaml. Raises ClaimsError for what cannot be, as one line."""
    data = yaml_data(path or ROOT / CLAIMS)
    runs = kept_runs() if runs is None else runs
    _keys(data, {"claims", "artifact", "pages"}, {"claims", "artifact", "pages"}, "the file")
    claims = {}
    for number, entry in enumerate(_listed(data["claims"], "claims"), 1):
        claim = _claim(entry, f"claims[{number - 1}]")
        if claim.id != f"C{number}":
            raise ClaimsError(f"{CLAIMS}: claim number {number} is called {claim.id}; allowed: C{number}")
        _check_runs(claim, runs)
        claims[claim.id] = claim
    _keys(data["artifact"], {"before", "after"}, {"before", "after"}, "artifact")
    pages = _mapped(data["pages"], "pages")
    return Document(claims, data["artifact"], {name: _mapped(of, f"pages.{name}") for name, of in pages.items()}, runs)


def _claim(entry: object, place: str) -> Claim:
    found = _made(Claim, entry, place)
    if not IDENTIFIER.fullmatch(str(found.id)):
        raise ClaimsError(f"{CLAIMS}: {place}.id={found.id}; allowed: C1, C2, ...")
    place = found.id
    values = {
        name: _made(Figure, of, f"{place}.values.{name}")
        for name, of in _mapped(found.values, f"{place}.values").items()
    }
    holds = [
        _made(Condition, of, f"{place}.holds[{number}]", {"from": "lowest", "to": "highest"})
        for number, of in enumerate(_listed(found.holds, f"{place}.holds"))
    ]
    tables = {
        name: _made(Table, of, f"{place}.tables.{name}")
        for name, of in _mapped(found.tables, f"{place}.tables").items()
    }
    for name, table in tables.items():
        if not FIGURE.fullmatch(table.format):
            raise ClaimsError(f"{CLAIMS}: {place}.tables.{name}.format={table.format}; allowed: as .2f, +.1f or ,.0f")
        for number, row in enumerate(table.rows):
            _keys(row, {"label", "where"}, {"label", "where", "of", "texts"}, f"{place}.tables.{name}.rows[{number}]")
        for number, column in enumerate(table.columns):
            _keys(column, {"heading", "where"}, {"heading", "where", "of"}, f"{place}.tables.{name}.columns[{number}]")
    rows = [str(name) for name in _listed(found.rows, f"{place}.rows")]
    whole = {each.name: getattr(found, each.name) for each in fields(Claim)}
    return Claim(**{**whole, "values": values, "holds": holds, "tables": tables, "rows": rows})


def _check_runs(claim: Claim, runs: Mapping[str, KeptRun]) -> None:
    """ClaimsError for figures without rows, rows without a condition, and a run that the claim does not list."""
    for name in claim.rows:
        if name not in runs:
            raise ClaimsError(f"{CLAIMS}: {claim.id}.rows: {name}: {nearest(name, runs)}")
    if (claim.values or claim.holds or claim.tables) and not claim.rows:
        raise ClaimsError(f"{CLAIMS}: {claim.id} has figures and no rows; name kept runs, as rows: [ablation]")
    if claim.rows and not claim.holds:
        raise ClaimsError(f"{CLAIMS}: {claim.id} has rows and nothing under holds; say what must be true of them")
    used = [item.of for item in (*claim.values.values(), *claim.holds, *claim.tables.values())]
    used += [str(part.get("of", "")) for table in claim.tables.values() for part in (*table.rows, *table.columns)]
    for name in filter(None, used):
        if name not in claim.rows:
            raise ClaimsError(f"{CLAIMS}: {claim.id}: of: {name}: {nearest(name, claim.rows)}")


def _made(kind: type[Kind], entry: object, place: str, renamed: Mapping[str, str] | None = None) -> Kind:
    """An object of a dataclass from a mapping. renamed: keys that are no names of Python -> fields."""
    known = {each.name for each in fields(kind)}  # pyright: ignore[reportArgumentType] dataclasses only
    needed = {
        each.name
        for each in fields(kind)  # pyright: ignore[reportArgumentType]
        if each.default is MISSING and each.default_factory is MISSING
    }
    renamed = renamed or {}
    allowed = (known - set(renamed.values())) | set(renamed)
    _keys(entry, needed, allowed, place)
    assert isinstance(entry, Mapping)
    return kind(**{renamed.get(str(key), str(key)): value for key, value in entry.items()})


def _keys(entry: object, needed: set[str], allowed: set[str], place: str) -> None:
    for key in _mapped(entry, place):
        if key not in allowed:
            raise ClaimsError(f"{CLAIMS}: {place}: {key}: {nearest(str(key), allowed)}")
    assert isinstance(entry, Mapping)
    if missing := sorted(needed - set(entry)):
        raise ClaimsError(f"{CLAIMS}: {place} lacks {', '.join(missing)}")


def _mapped(entry: object, place: str) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise ClaimsError(f"{CLAIMS}: {place} must be a mapping of names, not {type(entry).__name__}")
    return entry


def _listed(entry: object, place: str) -> Sequence[Any]:
    if not isinstance(entry, Sequence) or isinstance(entry, str):
        raise ClaimsError(f"{CLAIMS}: {place} must be a list, not {type(entry).__name__}")
    return entry
