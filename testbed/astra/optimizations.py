"""What makes ASTRA faster than its paper, with the same outputs and the same bits (PAPER.md, section 4).

    tables     keys and values of received tokens are sums of rows computed ahead (tables.py)
    codewords  received tokens of equal codewords are attended to once, for one group (codeword_attention.py)
    overlap    codes travel while the device attends to its own rows; both parts are merged (merge.py), and the class
               copies are averaged while the last layer's other rows are computed
    splitN     own rows in N pieces: one piece's codes travel while the next one's MLP computes (as TokenWeave does,
               arXiv 2505.11329); needs overlap

They are written joined by +, and ``paper`` is none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from testbed.errors import ConfigError

PAPER, AUTO = "paper", "auto"
ALLOWED = "must be paper, auto, or tables, codewords, overlap, split2 to split16 joined by +; split needs overlap"
MOST_PIECES = 16


@dataclass(frozen=True)
class Speedups:
    """A combination of them. pieces: 1 where rows are not split."""

    tables: bool = False
    codewords: bool = False
    overlap: bool = False
    pieces: int = 1

    @classmethod
    def parse(cls, text: str) -> Speedups:
        """Raises ConfigError (key ``astra.speedups``) for anything but PAPER or words joined by +, each once."""
        words = [] if text == PAPER else text.split("+")
        split = [int(found[1]) for word in words if (found := re.fullmatch(r"split(\d\d?)", word))]
        known = [word for word in ("tables", "codewords", "overlap") if word in words]
        pieces = split[0] if split else 1
        wrong = len(known) + len(split) != len(words) or len(split) > 1
        if wrong or (split and not (2 <= pieces <= MOST_PIECES and "overlap" in words)):
            raise ConfigError("astra.speedups", text, ALLOWED)
        return cls("tables" in words, "codewords" in words, "overlap" in words, pieces)

    @property
    def ahead(self) -> bool:
        """Whether something is computed ahead of the codewords, which must be the residual stream's own for that."""
        return self.tables or self.codewords

    def __str__(self) -> str:
        words = [word for word in ("tables", "codewords", "overlap") if getattr(self, word)]
        words += [f"split{self.pieces}"] if self.pieces > 1 else []
        return "+".join(words) or PAPER


def candidates(groups: int, rotary: bool) -> Iterator[Speedups]:
    """The combinations that ``auto`` chooses from; of equals it takes the first."""
    for pieces in (1, 2, 4, 8):
        for codewords in (False, True) if groups == 1 and not rotary else (False,):
            for tables in (True, False):
                yield Speedups(tables, codewords, overlap=True, pieces=pieces)
