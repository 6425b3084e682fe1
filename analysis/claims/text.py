"""Texts and tables with figures of kept rows in them.

In a text, ``{NAME:.2f}`` stands for a figure of a claim and ``{table NAME}`` for one of its tables; ``{C5.NAME:.2f}``
and ``{table C5.NAME}`` are those of claim C5. Nothing else is replaced.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.claims.conditions import select
from analysis.claims.document import CLAIMS, FIGURE, Claim, ClaimsError, Figure, Table
from analysis.claims.evaluate import Evaluation, Quoted, taken
from analysis.text_table import mark_notes, marked
from testbed.errors import nearest

WIDTH = 120
PLACEHOLDER = re.compile(r"\{(?:table (?P<table>[\w.]+)|(?P<value>[\w.]+):(?P<format>[^{}]*))\}")
VERBATIM = ("|", "```", "#", "<")  # what paragraphs begin with that are not wrapped
INTERVAL = ("_low", "_high")
EARLIER = "of an earlier revision"


@dataclass
class Notes:
    """What a text must say about its figures. earlier: runs of an earlier revision -> date. marks: in its tables."""

    earlier: dict[str, str] = field(default_factory=dict)
    marks: dict[str, None] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """The sentences for below the text; none if nothing is to be said."""
        sentences = [f"{note}." for note in self.marks]
        if self.earlier:
            runs = ", ".join(f"`{name}` ({date})" for name, date in self.earlier.items())
            sentences.append(f"*Rows {EARLIER}: {runs}.*")
        return [" ".join(sentences)] if sentences else []


def filled(text: str, evaluation: Evaluation, claim: Claim | None, notes: Notes, place: str) -> str:
    """The text with figures and tables.

    claim: the one whose names need no id; None in texts that belong to no claim. notes: gets what must be said below.
    """

    def replaced(found: re.Match[str]) -> str:
        of, name = _named(found["table"] or found["value"], evaluation, claim, place)
        if found["table"]:
            if name not in of.tables:
                raise ClaimsError(f"{place}: table {name}: {nearest(name, of.tables)}")
            return table_text(of, name, evaluation, notes)
        if not FIGURE.fullmatch(found["format"]):
            raise ClaimsError(f"{place}: {found[0]}: a figure is written as .2f, +.1f or ,.0f")
        values = evaluation.values(of)
        if name not in values:
            raise ClaimsError(f"{place}: {name}: {nearest(name, values)}")
        runs = set(_runs_of(of, of.values[name]))
        notes.earlier |= {run: date for run, date in evaluation.earlier(of).items() if run in runs}
        return written(values[name], found["format"])

    shown = PLACEHOLDER.sub(replaced, text)
    rest = PLACEHOLDER.sub("", text)
    if "{" in rest or "}" in rest:
        raise ClaimsError(f"{place}: a brace that belongs to no figure: write {{NAME:.2f}} or {{table NAME}}")
    return shown


def _named(name: str, evaluation: Evaluation, claim: Claim | None, place: str) -> tuple[Claim, str]:
    """(claim, name in it) of a placeholder."""
    whose, dot, rest = name.rpartition(".")
    if not dot:
        if claim is None:
            raise ClaimsError(f"{place}: {name}: write the claim too, as C5.{name}")
        return claim, name
    claims = evaluation.document.claims
    if whose not in claims:
        raise ClaimsError(f"{place}: {whose}: {nearest(whose, claims)}")
    return claims[whose], rest


def _runs_of(claim: Claim, figure: Figure) -> Iterator[str]:
    """The runs whose rows are in a figure."""
    for name in (*figure.ratio, *figure.difference):
        yield from _runs_of(claim, claim.values[name])
    if not figure.ratio and not figure.difference:
        yield figure.of or claim.rows[0]


def written(quoted: Quoted, how: str, unit: str = "", in_table: bool = False) -> str:
    """A figure as text, with a mark if it is degraded, and in a table if it is of one repeat. A zero has no sign."""
    text = format(quoted.number, how)
    if not float(text.replace(",", "")):
        text = text.lstrip("+-")
    return marked(text + unit, quoted.degraded, in_table and quoted.one)


def table_text(claim: Claim, name: str, evaluation: Evaluation, notes: Notes) -> str:
    """A table of a claim in Markdown."""
    table = claim.tables[name]
    place = f"{CLAIMS}: {claim.id}.tables.{name}"
    lines = [[table.head, *(str(column["heading"]) for column in table.columns), *table.texts]]
    lines.append(["---", *["---:"] * len(table.columns), *["---"] * len(table.texts)])
    for row in table.rows:
        texts = [str(text) for text in row.get("texts", [])]
        if len(texts) != len(table.texts):
            raise ClaimsError(f"{place}: row {row['label']}: {len(texts)} texts for {len(table.texts)} headings")
        cells = [_cell(claim, table, row, column, evaluation, place) for column in table.columns]
        lines.append([str(row["label"]), *cells, *texts])
    head, rule, *body = lines
    runs = {_run(claim, table, row, column) for row in table.rows for column in table.columns}
    notes.earlier |= {run: date for run, date in evaluation.earlier(claim).items() if run in runs}
    notes.marks |= dict.fromkeys(mark_notes(cell for row in body for cell in row))
    return "\n".join([_line(head).replace("|  |", "| |"), f"|{'|'.join(rule)}|", *map(_line, body)])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _run(claim: Claim, table: Table, row: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    """The run that a cell quotes; '' if neither cell nor table says so, and the claim has several."""
    only = claim.rows[0] if len(claim.rows) == 1 else ""
    return str(row.get("of") or column.get("of") or table.of or only)


def _cell(
    claim: Claim,
    table: Table,
    row: Mapping[str, Any],
    column: Mapping[str, Any],
    evaluation: Evaluation,
    place: str,
) -> str:
    place = f"{place}: {row['label']}, {column['heading']}"
    points = evaluation.points(claim, _run(claim, table, row, column), place)
    where = {**table.where, **row["where"], **column["where"]}
    found = select(points, where, place)
    if found.empty and table.gaps:
        return "-"

    def text(name: str, unit: str = "") -> str:
        return written(taken(found, points, Figure(column=name, where=where), place), table.format, unit, in_table=True)

    figure = text(table.column, table.unit)
    return f"{figure} [{', '.join(text(table.column + end) for end in INTERVAL)}]" if table.interval else figure


def wrapped(text: str) -> str:
    """Markdown with lines of at most WIDTH characters. Tables, code and headings stay as they are."""
    parts = [part.strip("\n") for part in re.split(r"\n\s*\n", text.strip("\n"))]
    return "\n\n".join(part if part.startswith(VERBATIM) else _paragraph(part) for part in parts)


def _paragraph(text: str) -> str:
    """A paragraph, or a list of which each item is one."""
    items = re.split(r"\n(?=- )", text)
    return "\n".join(
        textwrap.fill(
            " ".join(item.split()),
            WIDTH,
            subsequent_indent="  " if item.startswith("- ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for item in items
    )
