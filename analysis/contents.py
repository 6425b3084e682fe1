"""Which tables the end of a run prints, for each kind of rows."""

from __future__ import annotations

import pandas as pd

from analysis.accounting import accounting_table
from analysis.accuracy import accuracy_tables
from analysis.cells import TextTable, grids, paper_ratios, troubles
from analysis.fidelity import fidelity_tables
from analysis.load import schema_of
from analysis.scaling import tokens_tables
from analysis.unequal import unequal_table
from testbed.rows import ACCURACY, FIDELITY, LATENCY


def result_tables(frame: pd.DataFrame) -> list[TextTable]:
    """Every table of latencies that has something in it."""
    tables = [*grids(frame), *tokens_tables(frame), accounting_table(frame), paper_ratios(frame), *troubles(frame)]
    return [table for table in tables if table.rows]


def tables(frame: pd.DataFrame) -> list[TextTable]:
    """The tables in the order in which they are read."""
    return TABLES[schema_of(frame)](frame)


def _latency_tables(frame: pd.DataFrame) -> list[TextTable]:
    unequal = unequal_table(frame)
    return [*([unequal] if unequal.rows else []), *result_tables(frame)]


TABLES = {LATENCY: _latency_tables, FIDELITY: fidelity_tables, ACCURACY: accuracy_tables}
