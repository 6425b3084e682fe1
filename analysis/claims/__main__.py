"""``python -m analysis.claims``: each claim, its figures, and whether it holds for the kept rows.

``--write`` also writes ARTIFACT.md, the generated blocks of pages and the figure of the README. ``--strict`` fails if
rows are of an earlier revision.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from analysis.claims.document import ClaimsError, load_document
from analysis.claims.evaluate import Evaluation
from analysis.claims.figure import write_figure
from analysis.claims.pages import age, sentence, write_pages
from testbed.command import run_command
from testbed.errors import nearest
from testbed.progress import console

WRITE, STRICT = "--write", "--strict"
OK, FAILED = 0, 1
LINE = 140  # characters, if the output is no terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 1 if a claim does not hold, or with --strict if rows are of an earlier revision."""
    words = sys.argv[1:] if argv is None else list(argv)
    for word in words:
        if word not in (WRITE, STRICT):
            raise ClaimsError(f"{word}: {nearest(word, (WRITE, STRICT))}")
    evaluation = Evaluation(load_document())
    code = _print(evaluation, STRICT in words)
    if WRITE in words:
        for path in [*write_pages(evaluation), *write_figure(evaluation)]:
            print(path)
    return code


def _print(evaluation: Evaluation, strict: bool) -> int:
    """Print the table of claims, and a line for each thing that is wrong."""
    table = Table("", "claim", "holds", "rows")
    wrong: list[str] = []
    for claim in evaluation.document.claims.values():
        broken = evaluation.broken(claim)
        wrong += [f"{claim.id} does not hold: {text}" for text in broken]
        holds = "no" if broken else "yes" if claim.holds else "by its command"
        table.add_row(claim.id, Text(sentence(claim, evaluation)), holds, age(claim, evaluation))
    shown = console(LINE)
    shown.print(table)
    earlier = {name: kept.measured for name, kept in evaluation.kept.items() if kept.measured}
    if strict and earlier:
        names = ", ".join(f"{name} ({date})" for name, date in earlier.items())
        wrong.append(f"rows of an earlier revision: {names}; make measured measures them again")
    for line in wrong:
        print(f"claims: {line}", file=sys.stderr)
    return FAILED if wrong else OK


if __name__ == "__main__":
    sys.exit(run_command("claims", main))
