"""tables.tex without LaTeX: what a compiler would stumble over is not in it, whatever text the results have."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.report.render import latex
from analysis.report.sections import Section, Subsection
from analysis.text_table import LATEX_PACKAGES, PAGE_LINES, TextTable

TOKENS = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
ENVIRONMENTS = {"table": "", "tabular": "", "longtable": "longtable"}  # -> package that brings it
COMMANDS = {name: "booktabs" for name in ("toprule", "midrule", "bottomrule")}
COMMANDS |= dict.fromkeys(("endfirsthead", "endhead", "endfoot", "endlastfoot"), "longtable")
COMMANDS |= dict.fromkeys(
    ("begin", "end", "centering", "caption", "multicolumn", "par", "footnotesize", "setlength", "tabcolsep"), ""
)
COMMANDS |= dict.fromkeys(("raggedright", "arraybackslash"), "array")
COMMANDS |= dict.fromkeys(("textasciitilde", "textasciicircum", "textbackslash", "textsuperscript"), "")
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=60)
NASTY = r"100% of $x_1$ & {y} \input{z} #1 ~ ^ [2pt] <a> |b|"


def table(*cells: str, rows: int = 1, title: str = "t", note: str = "n") -> TextTable:
    columns = [f"c{number}" for number in range(len(cells))]
    return TextTable(title, columns, [list(cells)] * rows, [note], left=frozenset(columns[-1:]))


def tokens(text: str) -> list[str]:
    return TOKENS.findall(re.sub(r"(?<!\\)%[^\n]*", "", text))


def check(text: str, columns: int) -> None:
    """Braces and environments are balanced, all commands known, all rows as long as the table is wide."""
    depth, found = 0, tokens(text)
    for token in found:
        depth += {"{": 1, "}": -1}.get(token, 0)
        assert depth >= 0
        if re.fullmatch(r"\\[a-zA-Z]+", token):
            assert token[1:] in COMMANDS, token
            assert not COMMANDS[token[1:]] or COMMANDS[token[1:]] in LATEX_PACKAGES
    assert depth == 0 and not {"$", "#", "^", "~"} & set(found)
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
            assert not ENVIRONMENTS[name] or ENVIRONMENTS[name] in LATEX_PACKAGES
        else:
            assert stack.pop() == name
    assert not stack
    for line in text.splitlines():
        assert not re.match(r"\s*\[", line)  # after the end of a row, LaTeX takes it for a length
        if line.rstrip().endswith(r"\\") and not line.startswith((r"\caption", r"\multicolumn")):
            assert tokens(line).count("&") == columns - 1, line


@settings(max_examples=40)
@given(TEXT, TEXT, TEXT, TEXT)
def test_no_text_becomes_a_command(first: str, cell: str, title: str, note: str) -> None:
    check(table(first, cell, title=title, note=note).latex(), 2)


@pytest.mark.parametrize("rows", [1, PAGE_LINES // 2, PAGE_LINES // 2 + 1])  # of two lines each
def test_special_characters_stay_text_in_short_and_long_tables(rows: int) -> None:
    text = table(NASTY, NASTY, NASTY, rows=rows, title=NASTY, note=NASTY).latex()
    check(text, 3)
    assert ("longtable" in text) == (2 * rows > PAGE_LINES)
    assert text.count(r"100\% of \$x\_1\$ \& \{y\}") >= 3 * rows + 2


def test_the_file_says_which_packages_it_needs() -> None:
    section = Section(
        "One",
        [Subsection("a", tables=[table("x", "y")]), Subsection("b", tables=[table("x", "y", rows=99)])],
    )
    text = latex([section])
    preamble = re.findall(r"^% \\usepackage(?:\[.*\])?\{(.*)\}$", text, re.MULTILINE)
    assert sorted(preamble) == sorted(LATEX_PACKAGES)
    check(text, 2)
