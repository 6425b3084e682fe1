"""ARTIFACT.md, and the generated blocks of other pages, from the claims and from rows.

A block lies between ``<!-- generated: NAME -->`` and ``<!-- end -->``. Whatever quotes rows of an earlier revision says
so: the mark is added here, so no text can leave it out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from analysis.claims.document import CLAIMS, Claim, ClaimsError
from analysis.claims.evaluate import Evaluation
from analysis.claims.runs_list import runs_list
from analysis.claims.text import EARLIER, Notes, filled, wrapped
from testbed.errors import nearest
from testbed.results.atomic_write import replacing
from testbed.results.kept_runs import KINDS
from testbed.results.measurement_hash import ROOT

ARTIFACT = Path("ARTIFACT.md")
RUNS_PAGE = Path("docs/measured/README.md")
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def pages(evaluation: Evaluation) -> dict[Path, str]:
    """Path in the project -> whole text, for each page with figures of rows."""
    made = {ARTIFACT: artifact(evaluation)}
    for name, blocks in evaluation.document.pages.items():
        texts = {block: page_block(text, evaluation, f"{CLAIMS}: {name}: {block}") for block, text in blocks.items()}
        made[Path(name)] = with_blocks((ROOT / name).read_text("utf-8"), texts, name)
    lists = {f"runs-{kind}": runs_list(evaluation, kind) for kind in KINDS}
    made[RUNS_PAGE] = with_blocks((ROOT / RUNS_PAGE).read_text("utf-8"), lists, str(RUNS_PAGE))
    return made


def stale_pages(evaluation: Evaluation) -> dict[Path, str]:
    """Path in the project -> what it should be, for each page that differs from claims and rows."""
    return {path: text for path, text in pages(evaluation).items() if _content(ROOT / path) != text}


def write_pages(evaluation: Evaluation) -> list[Path]:
    """Write all pages. Returns those that have changed."""
    changed = stale_pages(evaluation)
    for path, text in changed.items():
        with replacing(ROOT / path) as partial:
            partial.write_text(text, "utf-8")
    return list(changed)


def _content(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def page_block(text: str, evaluation: Evaluation, place: str) -> str:
    """One block: the text with its figures, and the runs of an earlier revision that it quotes."""
    notes = Notes()
    shown = filled(text, evaluation, None, notes, place)
    return wrapped("\n\n".join([shown.strip("\n"), *notes.lines]))


def with_blocks(page: str, blocks: Mapping[str, str], name: str) -> str:
    """The page with the blocks replaced. Raises ClaimsError if page and blocks do not have the same names."""
    there = [found[2] for found in BLOCK.finditer(page)]
    for block in blocks:
        if there.count(block) != 1:
            raise ClaimsError(f"{name} has {there.count(block)} blocks {block}; allowed: one, between its comments")
    for block in there:
        if block not in blocks:
            raise ClaimsError(f"{name}: block {block}: {nearest(block, blocks)}")
    return BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]]}\n{found[4]}", page)


def sentence(claim: Claim, evaluation: Evaluation) -> str:
    """The claim in one sentence, with its figures."""
    return filled(" ".join(claim.sentence.split()), evaluation, claim, Notes(), f"{CLAIMS}: {claim.id}.sentence")


def age(claim: Claim, evaluation: Evaluation) -> str:
    """``none`` without rows, ``current``, or ``earlier`` with the oldest date if rows are of an earlier revision."""
    earlier = evaluation.earlier(claim)
    if not claim.rows:
        return "none"
    return f"earlier, {min(earlier.values())}" if earlier else "current"


def artifact(evaluation: Evaluation) -> str:
    """The whole of ARTIFACT.md."""
    texts, claims = evaluation.document.artifact, evaluation.document.claims.values()
    lines = ["| | claim | rows | minutes | memory |", "|---|---|---|---:|---:|"]
    for claim in claims:
        cells = [f"[{claim.id}](#{_anchor(claim)})", claim.title, age(claim, evaluation), claim.minutes, claim.memory]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    before, after = (
        wrapped(filled(texts[name], evaluation, None, Notes(), f"{CLAIMS}: artifact.{name}"))
        for name in ("before", "after")
    )
    parts = [before, "\n".join(lines), *(section(claim, evaluation) for claim in claims), after]
    return "\n\n".join(parts) + "\n"


def _anchor(claim: Claim) -> str:
    words = re.sub(r"[^\w\s-]", "", f"{claim.id} {claim.title}".lower())
    return re.sub(r"\s", "-", words)


def section(claim: Claim, evaluation: Evaluation) -> str:
    """The section of ARTIFACT.md about one claim."""
    place, notes = f"{CLAIMS}: {claim.id}", Notes()

    def text(name: str) -> str:
        return filled(getattr(claim, name), evaluation, claim, notes, f"{place}.{name}").strip("\n")

    parts = [f"### {claim.id} {claim.title}", f"**Claim:** {sentence(claim, evaluation)}."]
    parts += [f"```bash\n{claim.command.strip()}\n```", f"**Expect** {text('expect')}"]
    parts += [f"{note}." for note in notes.marks]
    if claim.rows:
        parts.append(f"**Rows:** {', '.join(_place(name, evaluation) for name in claim.rows)}.")
    parts.append(f"**Tolerance:** {text('tolerance')}")
    parts += [f"**Known deviations:** {text('deviations')}"] if claim.deviations else []
    return wrapped("\n\n".join(parts))


def _place(name: str, evaluation: Evaluation) -> str:
    kept = evaluation.kept[name]
    link = f"[{name}]({kept.run.folder})"
    return f"{link} ({EARLIER}, {kept.measured})" if kept.measured else link
