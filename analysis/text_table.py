"""Points as text: what the terminal and tables.md both show. A cell never hides that a point is degraded or failed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pandas as pd

from analysis.describe import MODEL, is_analytic, statistic
from analysis.paper.latency import paper_comparison
from analysis.points import mode_table, points, unfinished

DEGRADED = "~"
NOTES = {
    DEGRADED: "~ degraded fidelity: not a number to rely on; reasons below",
    "failed": "failed: the point has no result; errors below",
    "skipped": "skipped: the point does not exist for this method; reason below",
    "no": "verified no: outputs were not compared with the reference in this run",
    "one": "spread -: one repeat only, so nothing is known of the spread",
}

WRAP = 40  # characters: longer text wraps in LaTeX ...
WRAPPED = r">{\raggedright\arraybackslash}p{52mm}"  # ... in a column of this kind
PAGE_LINES = 35  # of a table's rows; more may not fit on a page
LATEX_PACKAGES = {"booktabs": "", "longtable": "", "array": "", "fontenc": "T1"}  # -> options; T1 has a < and a >
LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"}
LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}


@dataclass
class TextTable:
    """A table of strings; the first column is text, the others are right-aligned unless named in ``left``."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    left: frozenset[str] = frozenset()

    def markdown(self, level: int = 2) -> str:
        """The table in Markdown, with its title as a heading of this level."""

        def line(cells: list[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

        text_columns = {self.columns[0], *self.left}
        rule = "|" + "|".join("---" if name in text_columns else "---:" for name in self.columns) + "|"
        body = "\n".join([line(self.columns), rule, *map(line, self.rows)])
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"{'#' * level} {self.title}\n\n{body}\n{notes}\n"

    def latex(self) -> str:
        """The table in LaTeX, for LATEX_PACKAGES; long text wraps, and what is longer than a page goes on."""
        frame = pd.DataFrame(self.rows, columns=pd.Index(map(_latex, self.columns))).map(_latex)
        wide = {name for name in self.left if max(map(len, self._column(name)), default=0) > WRAP}
        text_columns = {self.columns[0], *self.left}
        kinds = [WRAPPED if name in wide else "l" if name in text_columns else "r" for name in self.columns]
        notes = "".join(f"\\par {_latex(note)}\n" for note in self.notes)
        whole = sum(math.ceil(max(map(len, row)) / WRAP) for row in self.rows) <= PAGE_LINES
        body = frame.style.hide(axis="index").to_latex(
            hrules=True,
            column_format="".join(kinds),
            caption=_latex(self.title),
            environment="table" if whole else "longtable",
            position="tbp" if whole else None,
            position_float="centering" if whole else None,
        )
        small = f"{{\\footnotesize\\setlength{{\\tabcolsep}}{{3pt}}\n{body}"
        end = "\\end{table}\n"
        return f"{small.removesuffix(end)}{notes}{end}}}\n" if whole else f"{small}{notes}}}\n"

    def _column(self, name: str) -> list[str]:
        return [row[self.columns.index(name)] for row in self.rows]


def _latex(text: str) -> str:
    """Text in which LaTeX sees no command, and no length where it follows the end of a row."""
    escaped = "".join(LATEX.get(letter, letter) for letter in text)
    return f"{{[}}{escaped[1:]}" if escaped.startswith("[") else escaped


def number(value: float, unit: str = "") -> str:
    """At least three significant digits, without exponents: 45,230 / 132.6 / 2.64 / 0.00770; missing: -."""
    if pd.isna(value):
        return "-"
    size = abs(value)
    decimals = (
        0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 or not size else 2 - math.floor(math.log10(size))
    )
    return f"{value:,.{min(decimals, 6)}f}{unit}"


def signed_pct(value: float) -> str:
    """``+3.1%``; missing: -."""
    return "-" if pd.isna(value) else f"{value:+.1f}%"


def grids(frame: pd.DataFrame) -> list[TextTable]:
    """Latency and, where there is any, speed-up of each method at each bandwidth; modes side by side if several."""
    measured = points(frame)
    tables = [mode_comparison(frame), _grid(f"Latency (ms, {statistic(frame)})", measured, frame, "latency_ms")]
    if measured["speedup"].notna().any():
        how = f", {MODEL}" if is_analytic(frame) else ""
        tables.append(_grid(f"Speed-up over one device{how}", measured, frame, "speedup"))
    return [table for table in tables if table.rows]


def troubles(frame: pd.DataFrame) -> list[TextTable]:
    """Points that are degraded or have no result, with the reasons."""
    return [table for table in (_degraded(frame), _unfinished(frame)) if table.rows]


def _grid(title: str, measured: pd.DataFrame, frame: pd.DataFrame, column: str) -> TextTable:
    lost = unfinished(frame)
    cells = {_place(row): str(row["status"]) for _, row in lost.iterrows()}
    for _, row in measured.iterrows():  # a point with some good repeats is not lost
        cells[_place(row)] = number(row[column]) + (DEGRADED if row["degraded"] else "")
    bandwidths = sorted({bandwidth for _, bandwidth in cells if bandwidth}) or [0.0]
    rows = []
    for label in pd.concat([measured["label"], lost["label"]]).drop_duplicates():
        about = _about(measured[measured["label"] == label])
        rows.append([label, *(cells.get((label, bandwidth), "-") for bandwidth in bandwidths), *about])
    columns = ["method", *(_mbps(bandwidth) for bandwidth in bandwidths), "spread", "repeats", "verified"]
    return TextTable(title, columns, rows, _notes(cells, rows))


def _place(row: pd.Series) -> tuple[str, float]:
    """Where a point stands in a grid; bandwidth 0 where it has none."""
    return str(row["label"]), 0.0 if pd.isna(row["bandwidth_mbps"]) else float(row["bandwidth_mbps"])


def _notes(cells: dict[tuple[str, float], str], rows: list[list[str]]) -> list[str]:
    """Explanations of the marks that a grid really has."""
    used = {text for text in cells.values() if text in NOTES}
    used |= {DEGRADED} if any(text.endswith(DEGRADED) for text in cells.values()) else set()
    used |= {"no"} if any(row[-1] == "no" for row in rows) else set()
    used |= {"one"} if any(row[-3] == "-" and row[-2] not in ("0", "-") for row in rows) else set()
    return [text for mark, text in NOTES.items() if mark in used]


def _about(rows: pd.DataFrame) -> list[str]:
    """Worst spread, repeats (fewest to most) and whether every repeat was verified, for one label."""
    if rows.empty:
        return ["-", "0", "-"]
    if is_analytic(rows):
        return ["-", "-", "model"]
    worst = rows["spread_pct"].max()
    low, high = int(rows["repeats"].min()), int(rows["repeats"].max())
    return [
        "-" if pd.isna(worst) else f"{worst:.1f}%",
        f"{low}" if low == high else f"{low}-{high}",
        "yes" if rows["verified"].all() else "no",
    ]


def mode_comparison(frame: pd.DataFrame) -> TextTable:
    """The same points in each compute mode; no rows if there is one mode only."""
    table = mode_table(frame)
    rows = []
    for (label, bandwidth), values in table.iterrows():  # pyright: ignore[reportGeneralTypeIssues]
        cells = [signed_pct(value) if " vs " in str(name) else number(value) for name, value in values.items()]
        rows.append([str(label), f"{bandwidth:g}", *cells])
    columns = ["method", "Mbps", *map(str, table.columns)]
    return TextTable("Compute modes compared (ms, median over repeats)", columns, rows)


def paper_ratios(frame: pd.DataFrame) -> TextTable:
    """The speed-ups that the paper reports, for the points of these rows that are in its setting."""
    rows = [
        [
            point["figure"],
            f"{point['bandwidth_mbps']:g}",
            number(point["paper"], "x"),
            number(point["ours"], "x"),
            signed_pct(point["difference_pct"]),
            "-" if pd.isna(point["spread_pct"]) else f"{point['spread_pct']:.1f}%",
            point["why"],
        ]
        for _, point in paper_comparison(frame).iterrows()
    ]
    columns = ["speed-up", "Mbps", "paper", "ours", "difference", "our spread", "conditions that differ"]
    return TextTable("The paper's reported figures beside ours", columns, rows, left=frozenset({columns[-1]}))


def _degraded(frame: pd.DataFrame) -> TextTable:
    rows = [
        [
            point["label"],
            f"{point['bandwidth_mbps']:g}",
            f"{point['degraded_repeats']} of {point['repeats']}",
            signed_pct(point["residual_pct"]),
            point["fidelity_note"],
        ]
        for _, point in points(frame).query("degraded").iterrows()
    ]
    columns = ["method", "Mbps", "repeats", "against the cost model", "why (first such repeat)"]
    return TextTable("Points with degraded fidelity", columns, rows, left=frozenset({columns[0], columns[-1]}))


def _unfinished(frame: pd.DataFrame) -> TextTable:
    rows = [
        [
            row["label"],
            "-" if pd.isna(row["bandwidth_mbps"]) else f"{row['bandwidth_mbps']:g}",
            row["status"],
            row["error"],
        ]
        for _, row in unfinished(frame).iterrows()
    ]
    columns = ["method", "Mbps", "status", "error"]
    return TextTable("Points without a result", columns, rows, left=frozenset(columns))


def _mbps(bandwidth: float) -> str:
    return f"{bandwidth:g} Mbps" if bandwidth else "any bandwidth"
