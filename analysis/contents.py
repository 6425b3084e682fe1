"""What a report of each kind of rows contains."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.accuracy import accuracy_figures, accuracy_tables
from analysis.cells import TextTable, result_tables
from analysis.fidelity import fidelity_figures, fidelity_tables
from analysis.figures import latency_breakdown, speedup_plot
from analysis.load import schema_of
from testbed.rows import ACCURACY, FIDELITY, LATENCY

TABLES = {LATENCY: result_tables, FIDELITY: fidelity_tables, ACCURACY: accuracy_tables}


def tables(frame: pd.DataFrame) -> list[TextTable]:
    """The tables in the order in which they are read."""
    return TABLES[schema_of(frame)](frame)


def draw(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Draw the figures into a folder; returns the files written."""
    figures = {LATENCY: (speedup_plot, latency_breakdown), FIDELITY: (fidelity_figures,), ACCURACY: (accuracy_figures,)}
    return [path for figure in figures[schema_of(frame)] for path in figure(frame, out_dir)]
