"""docs/columns.md, generated from the row schemas.

``python -m testbed.results.reference`` writes it.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from testbed.command import run_command
from testbed.results.atomic_write import replacing
from testbed.results.column import ANALYTIC_ONLY, MEASURED
from testbed.results.schema import ACCURACY, FIDELITY, LATENCY, SEGMENT, RowSchema

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "columns.md"
WIDTH = 120
MARKS = {MEASURED: "*measured*", ANALYTIC_ONLY: "*analytic only*"}
TITLES = {
    LATENCY: "Latency rows: one for each repeat of a point (runners `latency`, `clock_check`)",
    FIDELITY: "Fidelity rows: one for each repeat of an operation over links (runner `fidelity`)",
    ACCURACY: "Accuracy rows: one for each model, number of devices and seed (runners `accuracy_vit`, `accuracy_lm`)",
    SEGMENT: "Segment rows: one for each kind of segment of a method variant (runner `device_check`)",
}
INTRODUCTION = """# Columns of result rows

`make docs` generates this page from `testbed/results/`. A test fails if the page is out of date.

`results.parquet` and `results.csv` of a run have the same rows and columns. A **bold** column is a key. The keys
identify a point within a run. A row that failed or was skipped may have only its keys, `status` and `error`. Columns
marked *measured* are empty in rows of `network=analytic`. Columns marked *analytic only* are empty in all other rows.
`analysis.load_rows` reads both files. With pandas alone, read the CSV file with `keep_default_na=False`: a model may be
named `NA`.
"""


def document() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for schema, title in TITLES.items():
        parts.append(f"## {title}\n")
        parts.append(_list(schema))
    return "\n".join(parts)


def _list(schema: RowSchema) -> str:
    """A Markdown list with one item for each column. It is not a table because lines of a table cannot be wrapped."""
    items = []
    for column in schema.described:
        name = f"**`{column.name}`**" if column.key else f"`{column.name}`"
        marks = ", ".join(filter(None, [column.unit, MARKS.get(column.filled, "")]))
        text = f"- {name}{f' ({marks})' if marks else ''}: {column.meaning}."
        items.append(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False))
    return "\n".join(items) + "\n"


def main() -> int:
    """Write the page. Returns 0."""
    with replacing(DOCUMENT) as path:
        path.write_text(document(), "utf-8")
    print(DOCUMENT.relative_to(DOCUMENT.parents[1]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("columns", main))
