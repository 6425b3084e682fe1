"""One column of result rows: its type, its description, and what tables may assume about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

# pandas types with missing values
TEXT, COUNT, NUMBER, FLAG = "string", "Int64", "Float64", "boolean"

FIRST, MEDIAN = "first", "median"  # how a table of points aggregates the repeats of a point
MEASURED, ANALYTIC_ONLY = "measured", "analytic only"  # the rows that have a value
LEAST, MOST = 1e-9, 1e15  # of bounded numbers, so that sums, ratios and axes exist


@dataclass(frozen=True)
class Column:
    """A column. The testbed and the analysis take everything that they know about it from here.

    name, kind: of the column; kind is a pandas type with missing values.
    meaning, unit: text for docs/columns.md.
    key: whether the column is part of what identifies a point within a run.
    point: how a table of points aggregates it over repeats (FIRST, MEDIAN); "" if such a table leaves it out.
    label: format of the value in the label of a variant; "" if the value does not tell variants apart.
    of_links: whether it is a property of links or of the division over devices, which rows of ``single`` do not have.
    filled: MEASURED if rows of the cost model leave it empty, ANALYTIC_ONLY if only they fill it.
    always: whether every row with status ok has a value.
    positive: whether only values above 0 are possible.
    bounded: False if any number is possible.
    needed: whether a file of rows must have it to be of use.
    only_choice: the value for older rows, which lack the column.
    """

    name: str
    kind: str
    meaning: str
    unit: str = ""
    key: bool = False
    point: str = ""
    label: str = ""
    of_links: bool = False
    filled: str = ""
    always: bool = False
    positive: bool = False
    bounded: bool = True
    needed: bool = False
    only_choice: Any = None

    @property
    def is_number(self) -> bool:
        """Whether the values are numbers."""
        return self.kind in (COUNT, NUMBER)

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest possible number of a column of numbers."""
        if not self.bounded:
            return -math.inf, math.inf
        return (LEAST if self.positive else -MOST), MOST


ONLY_ATTEMPT = "only attempt"  # at a point, so there was nothing to choose
STAMPED = (  # by the run's folder
    Column("experiment", TEXT, "name of the experiment"),
    Column("signature", TEXT, "hash of the configuration; the name of the run's folder"),
    Column("attempt", COUNT, "0, 1, ...: how often the point had been measured before", only_choice=0),
    Column(
        "kept_because",
        TEXT,
        "why the attempt is kept, or `not kept` and the reason; stolen CPU time and failures decide, and nothing that "
        "was measured. Tables, figures and speed-ups use kept rows",
        only_choice=ONLY_ATTEMPT,
    ),
)
FIDELITY_COLUMNS = (
    Column(
        "steal_pct",
        NUMBER,
        "CPU steal time: part of the cores' time that the host gave to others",
        "%",
        filled=MEASURED,
    ),
    Column("fidelity", TEXT, "`ok` or `degraded`", always=True),
    Column("fidelity_note", TEXT, "why a row is degraded"),
)
STATUS = (
    Column("status", TEXT, "`ok`, `failed` or `skipped`", needed=True),
    Column("error", TEXT, "why a point failed or was skipped"),
)
