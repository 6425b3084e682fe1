"""A table of strings and its renderings in Markdown and LaTeX, and how numbers are written in its cells."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

DEGRADED = "~"  # mark beside a number
ONE = "¹"  # mark beside a number, before DEGRADED
ONE_NOTE = f"{ONE} one repeat, or no warm-up before the repeats: the spread of this number is not known"
DEGRADED_NOTE = f"{DEGRADED} degraded fidelity: do not rely on this number"
SPEEDUP_NOTE = f"{DEGRADED} degraded fidelity of the point, or of one device at the same bandwidth: do not rely on it"

WRAP_CHARS = 40  # longer text wraps in LaTeX ...
WRAPPED_COLUMN = r">{\raggedright\arraybackslash}p{52mm}"  # ... in a column of this kind
PAGE_LINES = 35  # a table with more lines may not fit on a page
LATEX_PACKAGES = {"booktabs": "", "longtable": "", "array": "", "fontenc": "T1"}  # -> options; T1 has a < and a >
LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"}
LATEX |= {ONE: r"\textsuperscript{1}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}


@dataclass
class TextTable:
    """A table of strings.

    title: written above it. columns: the headings. rows: one cell for each column. notes: lines below the table. left:
    the columns that are aligned to the left, beside the first one; all others hold numbers, aligned to the right.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    left: frozenset[str] = frozenset()

    def markdown(self, level: int = 2) -> str:
        """The table in Markdown. level: of the heading with its title."""

        def line(cells: list[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

        text_columns = {self.columns[0], *self.left}
        rule = "|" + "|".join("---" if name in text_columns else "---:" for name in self.columns) + "|"
        body = "\n".join([line(self.columns), rule, *map(line, self.rows)])
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"{'#' * level} {self.title}\n\n{body}\n{notes}\n"

    def latex(self) -> str:
        """The table in LaTeX, for LATEX_PACKAGES. Long text wraps; a table longer than a page becomes a longtable."""
        frame = pd.DataFrame(self.rows, columns=pd.Index(map(_latex, self.columns))).map(_latex)
        wide = {name for name in self.left if max(map(len, self._column(name)), default=0) > WRAP_CHARS}
        text_columns = {self.columns[0], *self.left}
        kinds = [WRAPPED_COLUMN if name in wide else "l" if name in text_columns else "r" for name in self.columns]
        notes = "".join(f"\\par {_latex(note)}\n" for note in self.notes)
        whole = sum(math.ceil(max(map(len, row)) / WRAP_CHARS) for row in self.rows) <= PAGE_LINES
        body = frame.style.hide(axis="index").to_latex(
            hrules=True,
            column_format="".join(kinds),
            caption=_latex(self.title),
            environment="table" if whole else "longtable",
            position="tbp" if whole else None,
            position_float="centering" if whole else None,
        )
        small = f"{{\\footnotesize\\setlength{{\\tabcolsep}}{{3pt}}\n{body}"
        end = "\\end{table}\n"
        return f"{small.removesuffix(end)}{notes}{end}}}\n" if whole else f"{small}{notes}}}\n"

    def _column(self, name: str) -> list[str]:
        return [row[self.columns.index(name)] for row in self.rows]


def _latex(text: str) -> str:
    """Text in which LaTeX sees no command, and no length where it follows the end of a row."""
    escaped = "".join(LATEX.get(letter, letter) for letter in text)
    return f"{{[}}{escaped[1:]}" if escaped.startswith("[") else escaped


def number(value: float, unit: str = "") -> str:
    """At least three significant digits, without exponents: 45,230 / 132.6 / 2.64 / 0.00770. A missing value: -."""
    if pd.isna(value):
        return "-"
    size = abs(value)
    decimals = (
        0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 or not size else 2 - math.floor(math.log10(size))
    )
    return f"{value:,.{min(decimals, 6)}f}{unit}"


def marked(text: str, degraded: bool | np.bool_, one: bool | np.bool_ = False) -> str:
    """The text of a number with its marks behind it; a missing number has none.

    one: fewer than two repeats after a warm-up (ONE). degraded: DEGRADED.
    """
    return text if text == "-" else text + (ONE if one else "") + (DEGRADED if degraded else "")


def mark_notes(cells: Iterable[str], degraded: str = DEGRADED_NOTE) -> list[str]:
    """The notes of the marks that cells have. degraded: what DEGRADED means here."""
    cells = list(cells)
    notes = {ONE: ONE_NOTE, DEGRADED: degraded}
    return [note for mark, note in notes.items() if any(mark in cell for cell in cells)]


def percent(value: float) -> str:
    """``3.1%``. A missing value: -."""
    return "-" if pd.isna(value) else f"{value:.1f}%"


def signed_pct(value: float) -> str:
    """``+3.1%``. A missing value: -."""
    return "-" if pd.isna(value) else f"{value:+.1f}%"
