"""What a report of each kind of rows contains."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.cells import TextTable, result_tables
from analysis.fidelity import fidelity_figures, fidelity_tables
from analysis.figures import latency_breakdown, speedup_plot
from analysis.load import schema_of
from testbed.rows import FIDELITY


def tables(frame: pd.DataFrame) -> list[TextTable]:
    """The tables in the order in which they are read."""
    return fidelity_tables(frame) if schema_of(frame) is FIDELITY else result_tables(frame)


def draw(frame: pd.DataFrame, out_dir: Path) -> list[Path]:
    """Draw the figures into a folder; returns the files written."""
    if schema_of(frame) is FIDELITY:
        return fidelity_figures(frame, out_dir)
    return [*speedup_plot(frame, out_dir), *latency_breakdown(frame, out_dir)]
