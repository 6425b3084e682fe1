"""The project's own claims: each holds for the kept rows, and the pages say what claims and rows say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from analysis.claims import __main__ as command
from analysis.claims import figure
from analysis.claims import pages as module
from analysis.claims.document import Claim, load_document
from analysis.claims.evaluate import Evaluation
from analysis.claims.pages import BLOCK, EARLIER, age, pages, section, sentence, stale_pages, write_pages

ROOT = Path(__file__).parents[3]
DOCUMENT = load_document()


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return Evaluation(DOCUMENT)


@pytest.mark.parametrize("name", DOCUMENT.claims)
def test_a_claim_holds_for_its_rows(name: str, evaluation: Evaluation) -> None:
    claim = DOCUMENT.claims[name]
    assert evaluation.broken(claim) == []
    assert sentence(claim, evaluation) and section(claim, evaluation).startswith(f"### {name} ")
    assert bool(claim.holds) == bool(claim.rows)


def test_pages_say_what_claims_and_rows_say(evaluation: Evaluation) -> None:
    assert {str(path) for path in stale_pages(evaluation)} == set(), "make docs writes these pages again"


def runs_of(claim: Claim, name: str) -> set[str]:
    """The runs behind a figure or a table of a claim."""
    if name in claim.tables:
        table = claim.tables[name]
        named = {part.get("of") or table.of for part in table.rows if part.get("of") or table.of}
        named |= {part["of"] for part in table.columns if part.get("of")}
        return named or set(claim.rows)
    figure = claim.values[name]
    others = (*figure.ratio, *figure.difference)
    return set().union(*(runs_of(claim, other) for other in others)) if others else {figure.of or claim.rows[0]}


def test_every_quoted_run_of_an_earlier_revision_is_marked(evaluation: Evaluation) -> None:
    made = pages(evaluation)
    for name, claim in DOCUMENT.claims.items():
        dates = evaluation.earlier(claim)
        (line,) = re.findall(rf"^\| \[{name}\].*$", made[module.ARTIFACT], re.MULTILINE)
        assert not dates or f"| earlier, {min(dates.values())} |" in line
        text = " ".join(section(claim, evaluation).split())
        assert all(f"({evaluation.kept[run].run.folder}) ({EARLIER}, {date})" in text for run, date in dates.items())
    runs = made[module.RUNS_PAGE]
    for name, kept in evaluation.kept.items():
        (item,) = re.findall(rf"^- `{re.escape(name)}`: .*\n(?:  .*\n)*", runs, re.MULTILINE)
        assert (f"Rows {EARLIER} ({kept.measured})" in " ".join(item.split())) == bool(kept.measured)
    quoted = 0
    for page, blocks in DOCUMENT.pages.items():
        shown = {found[2]: " ".join(found[3].split()) for found in BLOCK.finditer(made[Path(page)])}
        for block, text in blocks.items():
            for claim, name in re.findall(r"\{(?:table )?(C\d+)\.(\w+)", text):
                for run in runs_of(DOCUMENT.claims[claim], name):
                    quoted += 1
                    date = evaluation.kept[run].measured
                    assert not date or f"`{run}` ({date})" in shown[block], (page, block, run)
    assert quoted > 20


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pages, which are the ones that are compared and written."""
    for name in ("README.md", "ARTIFACT.md", "docs/results.md", "docs/measured/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("README.md", r"\| single \| (\d)", r"| single | 9\1"),
        ("README.md", r"(`paper` reaches) \d", r"\1 9"),
        ("docs/results.md", r"(\| lut\+overlap \|) \d", r"\1 9"),
        ("ARTIFACT.md", r"(\| tensor \|) \d", r"\1 8"),
        ("docs/measured/README.md", r"(- `ablation`: \d+ minutes,) ", r"\1 1"),
    ],
)
def test_a_figure_changed_by_hand_is_found(name: str, old: str, new: str, copy: Path, evaluation: Evaluation) -> None:
    before = (copy / name).read_text()
    changed, times = re.subn(old, new, before)
    assert times >= 1 and changed != before
    (copy / name).write_text(changed)
    assert list(stale_pages(evaluation)) == [Path(name)]
    assert write_pages(evaluation) == [Path(name)] and (copy / name).read_text() == before


def test_a_mark_removed_by_hand_is_found(copy: Path, evaluation: Evaluation) -> None:
    marked = [name for name in ("README.md", "ARTIFACT.md") if EARLIER in (copy / name).read_text()]
    if not marked:
        pytest.skip("all rows are of this revision")
    for name in marked:
        (copy / name).write_text((copy / name).read_text().replace(EARLIER, "of this revision", 1))
    assert {str(path) for path in stale_pages(evaluation)} == set(marked)


def test_the_command_prints_every_claim(capsys: pytest.CaptureFixture[str], evaluation: Evaluation) -> None:
    assert command.main([]) == 0
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in DOCUMENT.claims) and not re.search(r"│ no +│", printed)
    earlier = any(kept.measured for kept in evaluation.kept.values())
    assert command.main(["--strict"]) == int(earlier)
    assert ("earlier revision" in capsys.readouterr().err) == earlier
    assert {age(claim, evaluation) == "none" for claim in DOCUMENT.claims.values() if not claim.rows} == {True}


def test_the_figure_shows_the_kept_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: Evaluation
) -> None:
    assert not figure.is_stale(evaluation), "make docs plots it again"
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(figure, "ROOT", tmp_path)
    assert figure.is_stale(evaluation)
    assert figure.write_figure(evaluation) == [figure.PLOT] and not figure.is_stale(evaluation)
    assert figure.write_figure(evaluation) == []
    monkeypatch.setattr(figure, "_hash", lambda evaluation: "of other rows")
    assert figure.is_stale(evaluation)
