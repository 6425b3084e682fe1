"""Write the report of results folders: ``python -m analysis.report [RESULTS...] [--out FOLDER]``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from analysis.report.render import print_pdf
from analysis.report.write import write_pages
from analysis.runs import find_runs
from testbed.command import run_command


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns 0, or 1 if some folders cannot be read, or 2 after an error, as if none can."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report", description="Write the report of one or several runs."
    )
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        default=[Path("results")],
        help="results folders, or folders that contain some; default: results",
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write to; default: report/ in the folder that contains all of them"
    )
    arguments = parser.parse_args(argv)
    return run_command("report", lambda: _report(arguments))


def _report(arguments: argparse.Namespace) -> int:
    runs, problems = find_runs(arguments.results)
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
