"""One word for one thing (docs/glossary.md): words that the project has given up stay out of its code and pages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What is no longer said -> what is said instead.
GIVEN_UP = {
    r"turned to (its|their|principal) components?": "PCA pre-rotation",
    r"\bcalm(est|er)\b": "lowest CPU steal",
    r"\bnumber formats?\b": "codec",
    r"\bjudged\b": "evaluated",
    r"\badapted\b": "fine-tuned",
    r"\bpass(es)? over a prompt\b": "prefill",
    r"\bthe original\b(?! layers?| release| context)": "the uncompressed baseline",
    r"\bpictures?\b": "image",
    r"\bcodebooks in a row\b": "residual VQ stages (num_quantizers)",
    r"\bspeed-?ups_used\b|\bspeedups=": "optimizations_resolved, optimizations=",
    r"\bsettled\b": "completed",
    r"\bpayers?\b": "contending senders",
    r"\bunequal[ _]devices\b": "heterogeneous devices",
    r"\btakes? cores away\b|\btook cores away\b": "CPU steal",
    r"\bholds? back\b|\bhold-back\b": "burst credit",
    r"(?-i:\b(PAPER|BASELINES)\.md\b)": "docs/paper.md, docs/baselines.md",
    r"\bquantis|\bnormalis|\btokenis|\bcolour|\bbehaviour|\bneighbour": "American spelling",
}
# Translation of older rows, kept rows and their folders' names, and this list.
SPARED = ("analysis/older_rows.py", "docs/measured/", "notebooks/sample/", "tests/test_words.py", "LICENSE")


def files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kinds = (".py", ".md", ".yaml", ".ipynb", ".j2")
    return [name for name in listed.splitlines() if name.endswith(kinds) and not name.startswith(SPARED)]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout: git lists the files")
@pytest.mark.parametrize("pattern", GIVEN_UP)
def test_words_that_were_given_up_stay_away(pattern: str) -> None:
    found = []
    for name in files():
        path = ROOT / name
        lines = path.read_text().splitlines() if path.exists() else []
        found += [f"{name}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if re.search(pattern, line, re.I)]
    assert not found, f"say {GIVEN_UP[pattern]}"
