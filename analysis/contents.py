"""Which tables the end of a run prints, for each kind of rows."""

from __future__ import annotations

import pandas as pd

from analysis.accounting import accounting_table
from analysis.accuracy import accuracy_tables
from analysis.cells import TextTable, grids, paper_ratios, troubles
from analysis.incast import link_tables
from analysis.load import schema_of
from analysis.peers import known_beside
from analysis.scaling import tokens_tables
from analysis.unequal import unequal_table
from testbed.rows import ACCURACY, FIDELITY, LATENCY


def result_tables(frame: pd.DataFrame) -> list[TextTable]:
    """Every table of latencies that has something in it."""
    tables = [unequal_table(frame), *grids(frame), *tokens_tables(frame), accounting_table(frame), paper_ratios(frame)]
    return [table for table in (*tables, known_beside(frame), *troubles(frame)) if table.rows]


TABLES = {LATENCY: result_tables, FIDELITY: link_tables, ACCURACY: accuracy_tables}


def tables(frame: pd.DataFrame) -> list[TextTable]:
    """The tables in the order in which they are read."""
    return TABLES[schema_of(frame)](frame)
