"""The summary that a run prints at its end: its conditions, its tables, and the paths of its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.accuracy import accuracy_tables
from analysis.describe import modes, setting
from analysis.heterogeneous import heterogeneous_table
from analysis.incast import link_tables
from analysis.latency_tables import latency_tables, problem_tables
from analysis.load import schema_of
from analysis.paper.accounting import accounting_table
from analysis.paper.latency import paper_ratio_table
from analysis.paper.peers import peers_beside
from analysis.report.sections import comparison
from analysis.report.write import write_report
from analysis.runs import find_runs, read_run
from analysis.scaling import tokens_tables
from analysis.segments import segment_tables
from analysis.text_table import TextTable
from testbed.progress import console as message_console
from testbed.results.schema import ACCURACY, FIDELITY, LATENCY, SEGMENT

PLAIN_WIDTH = 140  # characters in a line, if the output is no terminal
UNLIMITED = 1 << 20  # characters in a line, to find how many a table needs
LONGEST_WORD = 24  # characters; longer words may be folded, as paths in error messages are


def summarize(folder: Path, console: Console | None = None) -> None:
    """Print the tables of a results folder, which may be incomplete, and write its report.

    Raises analysis.load.ResultsError if the folder has no readable rows, and TestbedError if the report cannot be
    written.
    """
    run = read_run(folder)
    frame = run.frame
    console = console or message_console(PLAIN_WIDTH)
    console.print()
    console.print(Text(f"{frame['experiment'].iloc[0]}: {setting(frame)}", style="bold"), soft_wrap=True)
    for line in modes(frame):
        console.print(Text(f"  {line}"), soft_wrap=True)
    for note in run.notes:
        console.print(Text(f"  note: {note}"), soft_wrap=True)
    for table in tables(frame):
        _print(table, console)
    files = write_report(folder, run)
    console.print()
    for path in _places(folder, files):
        console.print(Text(f"  {path}"), soft_wrap=True)


def print_comparison(folders: Sequence[Path]) -> None:
    """Print the results of the paper beside those of these folders.

    Raises analysis.load.ResultsError if no folder has readable rows.
    """
    runs, _ = find_runs(folders)
    _print(_in_short(comparison(runs)), message_console(PLAIN_WIDTH))


def _in_short(table: TextTable) -> TextTable:
    """The table without the rows that have no result of ours; one note for each reason counts these."""
    ours, setting_of, why = (table.columns.index(name) for name in ("ours", "setting", "why"))
    reasons: dict[str, list[str]] = {}
    for row in table.rows:
        if row[ours] == "-":
            reasons.setdefault(row[why], []).append(row[setting_of].partition(":")[0])
    notes = [
        f"{len(names)} results of {', '.join(dict.fromkeys(names))} without ours: {reason}"
        for reason, names in reasons.items()
    ]
    found = [row for row in table.rows if row[ours] != "-"]
    return replace(table, rows=found, notes=[*table.notes, *notes, "tables.md has a row for each result"])


def _print(table: TextTable, console: Console) -> None:
    console.print()
    grid = _rich(table)
    least = console.measure(grid, options=console.options.update(width=UNLIMITED)).minimum
    if least > console.width:  # else rich cuts numbers and drops labels; so the terminal wraps the lines
        grid.width = least
    console.print(grid, crop=False)
    for note in table.notes:
        console.print(Text(f"  {note}"), soft_wrap=True)


def _rich(table: TextTable) -> Table:
    """The table for the terminal. Its texts are Text, so none of them is markup."""
    grid = Table(title=Text(table.title, style="bold"), title_justify="left", box=None, pad_edge=False, padding=(0, 2))
    for index, name in enumerate(table.columns):
        left = index == 0 or name in table.left
        # a value with its interval may wrap; a number must not be cut
        wraps = name in table.left or any(" " in row[index] for row in table.rows)
        cells = [name, *(row[index] for row in table.rows)]
        words = [min(len(word), LONGEST_WORD) for cell in cells for word in cell.split()] if wraps else map(len, cells)
        look: dict[str, Any] = {"justify": "left" if left else "right", "no_wrap": not wraps, "overflow": "fold"}
        grid.add_column(Text(name), min_width=max(words, default=0), **look)
    for row in table.rows:
        grid.add_row(*map(Text, row))
    return grid


def _places(folder: Path, files: list[Path]) -> list[Path]:
    data = [folder / name for name in ("results.csv", "results.parquet", "manifest.json")]
    return [path for path in (*data, *files) if path.exists()]


def result_tables(frame: pd.DataFrame) -> list[TextTable]:
    """The tables of a latency experiment; tables without rows are left out."""
    tables = [heterogeneous_table(frame), *latency_tables(frame), *tokens_tables(frame), accounting_table(frame)]
    tables += [paper_ratio_table(frame), peers_beside(frame), *problem_tables(frame)]
    return [table for table in tables if table.rows]


TABLES = {LATENCY: result_tables, FIDELITY: link_tables, ACCURACY: accuracy_tables, SEGMENT: segment_tables}


def tables(frame: pd.DataFrame) -> list[TextTable]:
    """The tables of any experiment, in the order in which the terminal shows them."""
    return TABLES[schema_of(frame)](frame)
