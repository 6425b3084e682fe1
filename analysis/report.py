"""The report of one run: tables.md and the figures, in the run's own folder.

``python -m analysis.report results/latest``
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from analysis.cells import result_tables
from analysis.figures import latency_breakdown, speedup_plot
from analysis.load import ResultsError, load_manifest, load_rows
from analysis.words import modes, setting


def write_report(folder: Path | str, frame: pd.DataFrame | None = None) -> list[Path]:
    """Write report/tables.md and the figures into a results folder; returns the files written."""
    folder = Path(folder)
    frame = load_rows(folder) if frame is None else frame
    report = folder / "report"
    report.mkdir(exist_ok=True)
    figures = [*speedup_plot(frame, report), *latency_breakdown(frame, report)]
    for stem in {"speedup", "breakdown"} - {path.stem for path in figures}:  # of an earlier state of this folder
        for suffix in (".png", ".pdf"):
            (report / stem).with_suffix(suffix).unlink(missing_ok=True)
    tables = report / "tables.md"
    tables.write_text(_markdown(folder, frame, figures), encoding="utf-8")
    return [tables, *figures]


def _markdown(folder: Path, frame: pd.DataFrame, figures: list[Path]) -> str:
    lines = [f"# {frame['experiment'].iloc[0]}", "", setting(frame), ""]
    lines += [f"- {line}" for line in modes(frame)]
    revision = load_manifest(folder).get("git_sha")
    lines += [f"- code revision {revision}"] if revision else []
    blocks = ["\n".join(lines) + "\n", *(table.markdown() for table in result_tables(frame))]
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
