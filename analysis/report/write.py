"""Write the report of one or several runs: a page, its tables as text, and its figures as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from analysis.describe import is_analytic
from analysis.load import ResultsError, fact
from analysis.report.figure_files import Drawing
from analysis.report.render import latex, markdown, page
from analysis.report.sections import sections
from analysis.runs import Run, read_run
from testbed.results.atomic_write import writing


def write_report(folder: Path | str, run: Run | None = None) -> list[Path]:
    """Write the report of a results folder to its subfolder report/, and return the files.

    run: of this folder, if it has been read already. Raises ResultsError if the folder has no readable rows.
    """
    folder = Path(folder)
    return write_pages([run or read_run(folder)], folder / "report")


def write_pages(runs: Sequence[Run], out: Path, problems: Sequence[str] = ()) -> list[Path]:
    """Write report.html, tables.md, tables.tex and the figures of these runs to ``out``, and return the files.

    Figures of an earlier report in ``out`` are removed. problems: one line for each folder that cannot be shown.
    Raises TestbedError with the name of the first file that cannot be written.
    """
    if os.path.lexists(out) and not os.path.isdir(out):
        raise ResultsError(f"{out}: no folder, so no report can be written to it")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    drawing = Drawing(out)
    found = sections(list(runs), drawing)
    title = _title(runs)
    texts = {
        "report.html": page(title, _subtitle(runs), found, list(problems), _citation(runs), out),
        "tables.md": markdown(title, found, list(problems), out),
        "tables.tex": latex(found),
    }
    for name, text in texts.items():
        with writing(out / name):
            (out / name).write_text(text, encoding="utf-8")
    for path in {out / "report.pdf", *drawing.possible()} - set(drawing.drawn):
        with writing(path):
            path.unlink(missing_ok=True)
    return [*(out / name for name in texts), *drawing.drawn]


def _title(runs: Sequence[Run]) -> str:
    return ", ".join(dict.fromkeys(run.experiment for run in runs))


def _subtitle(runs: Sequence[Run]) -> str:
    count = f"{len(runs)} runs, " if len(runs) > 1 else ""
    started = sorted(run.started[:10] for run in runs if run.started)
    made = "computed" if all(is_analytic(run.frame) for run in runs) else "measured"
    when = f"{made} {started[0]}" + (f" to {started[-1]}" if started[-1] != started[0] else "") if started else ""
    return f"ASTRA testbed: {count}{when or 'date unknown'}"


def _citation(runs: Sequence[Run]) -> str:
    """What identifies these results: experiment, signature, code revision and date."""
    texts = []
    for run in runs:
        entry = run.entries[-1] if run.entries else {}
        sha = fact(entry, "git_sha")[:12]
        signature = str(run.frame["signature"].iloc[0])
        words = [run.experiment, signature, f"revision {sha}" if sha else "", fact(entry, "started")[:10]]
        texts.append(" ".join(filter(None, words)))
    return "ASTRA testbed, " + "; ".join(texts) + "."
