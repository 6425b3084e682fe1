"""Which tables the end of a run prints, for each kind of rows."""

from __future__ import annotations

import pandas as pd

from analysis.accuracy import accuracy_tables
from analysis.cells import TextTable, result_tables
from analysis.incast import link_tables
from analysis.load import schema_of
from testbed.rows import ACCURACY, FIDELITY, LATENCY

TABLES = {LATENCY: result_tables, FIDELITY: link_tables, ACCURACY: accuracy_tables}


def tables(frame: pd.DataFrame) -> list[TextTable]:
    """The tables in the order in which they are read."""
    return TABLES[schema_of(frame)](frame)
