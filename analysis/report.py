"""The report of one run: tables.md and the figures, in the run's own folder.

``python -m analysis.report results/latest``
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from analysis.contents import draw, tables
from analysis.load import ResultsError, load_rows, revisions
from analysis.words import modes, setting


def write_report(folder: Path | str, frame: pd.DataFrame | None = None) -> list[Path]:
    """Write report/tables.md and the figures into a results folder; returns the files written."""
    folder = Path(folder)
    frame = load_rows(folder) if frame is None else frame
    report = folder / "report"
    report.mkdir(exist_ok=True)
    figures = draw(frame, report)
    for path in {*report.glob("*.png"), *report.glob("*.pdf")} - set(figures):  # of an earlier state of this folder
        path.unlink()
    text = report / "tables.md"
    text.write_text(_markdown(folder, frame, figures), encoding="utf-8")
    return [text, *figures]


def _markdown(folder: Path, frame: pd.DataFrame, figures: list[Path]) -> str:
    lines = [f"# {frame['experiment'].iloc[0]}", "", setting(frame), ""]
    lines += [f"- {line}" for line in modes(frame)]
    lines += [f"- code revision {revision}" for revision in revisions(folder)]
    blocks = ["\n".join(lines) + "\n", *(table.markdown() for table in tables(frame))]
    blocks += [f"![{path.stem}]({path.name})\n" for path in figures if path.suffix == ".png"]
    return "\n".join(blocks)


def main() -> None:
    """Print the summary of each folder named on the command line (default results/latest) and write its report."""
    from analysis.summary import summarize

    for folder in sys.argv[1:] or ["results/latest"]:
        try:
            summarize(Path(folder))
        except ResultsError as fault:
            print(f"report: {fault}", file=sys.stderr)
            raise SystemExit(2) from None


if __name__ == "__main__":
    main()
