"""The report of one run or of several: a page to look at, tables and figures to take along.

``python -m analysis.report [RESULTS...] [--out FOLDER]``: results folders, or folders that have some below them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.drawing import Drawing
from analysis.load import ResultsError, fact
from analysis.page import latex, markdown, page, print_pdf
from analysis.runs import Run, find_runs, read_run
from analysis.sections import sections
from analysis.words import is_analytic


def write_report(folder: Path | str, run: Run | None = None) -> list[Path]:
    """The report of one run, read unless it is given, into report/ of its own folder; returns the files written."""
    folder = Path(folder)
    return write_pages([run or read_run(folder)], folder / "report")


def write_pages(runs: Sequence[Run], out: Path, problems: Sequence[str] = ()) -> list[Path]:
    """report.html, tables.md, tables.tex and all figures of these runs into a folder; returns the files written.

    Figures of an earlier state of the folder are removed. problems: what was asked for and cannot be shown.
    """
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
        (out / name).write_text(text, encoding="utf-8")
    for path in {out / "report.pdf", *drawing.possible()} - set(drawing.drawn):
        path.unlink(missing_ok=True)
    return [*(out / name for name in texts), *drawing.drawn]


def _title(runs: Sequence[Run]) -> str:
    return ", ".join(dict.fromkeys(run.experiment for run in runs))


def _subtitle(runs: Sequence[Run]) -> str:
    count = f"{len(runs)} runs, " if len(runs) > 1 else ""
    started = sorted(run.started[:10] for run in runs if run.started)
    made = "computed" if all(is_analytic(run.frame) for run in runs) else "measured"
    when = f"{made} {started[0]}" + (f" to {started[-1]}" if started[-1] != started[0] else "") if started else ""
    return f"ASTRA testbed: {count}{when or 'date not known'}"


def _citation(runs: Sequence[Run]) -> str:
    """What identifies these results: experiment, signature, code, date."""
    texts = []
    for run in runs:
        entry = run.entries[-1] if run.entries else {}
        sha = fact(entry, "git_sha")[:12]
        signature = str(run.frame["signature"].iloc[0])
        words = [run.experiment, signature, f"revision {sha}" if sha else "", fact(entry, "started")[:10]]
        texts.append(" ".join(filter(None, words)))
    return "ASTRA testbed, " + "; ".join(texts) + "."


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns 0; 1 if some of what was named cannot be shown; 2 if nothing can."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report", description="The report of one run or of several."
    )
    parser.add_argument("results", nargs="*", type=Path, default=[Path("results")], help="default: results")
    parser.add_argument("--out", type=Path, help="folder to write to; default: report/ in the one named or above all")
    arguments = parser.parse_args(argv)
    try:
        runs, problems = find_runs(arguments.results)
    except ResultsError as fault:
        print(f"report: {fault}", file=sys.stderr)
        return 2
    out = arguments.out or Path(os.path.commonpath([path.absolute() for path in arguments.results])) / "report"
    files = write_pages(runs, out, problems)
    pdf, reason = print_pdf(files[0])
    for run in runs:
        for note in run.notes:
            print(f"report: {run.folder}: {note}", file=sys.stderr)
    for problem in problems:
        print(f"report: left out: {problem}", file=sys.stderr)
    for path in [*files, *([pdf] if pdf else [])]:
        print(os.path.relpath(path))
    if reason:
        print(reason)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
