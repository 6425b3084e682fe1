"""Optimizations of ASTRA beyond its paper: the same outputs and the same bits in less time (docs/paper.md, section 4).

    lut       keys and values of received tokens are sums of rows of lookup tables (lookup_tables.py)
    dedup     received tokens with equal codewords are attended to once; for one group (codeword_attention.py)
    overlap   codes travel while the device attends to its own rows, and the partial attentions are merged
              (partial_attention.py); the class copies are averaged while the last layer's other rows are computed
    chunksN   own rows are cut into N chunks: one chunk's codes travel while the next chunk's MLP runs (as in
              TokenWeave, arXiv 2505.11329); needs overlap

A combination is written with +, for example ``lut+overlap``. ``paper`` means none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from testbed.errors import ConfigError

PAPER, AUTO = "paper", "auto"
ALLOWED = "must be paper, auto, or lut, dedup, overlap, chunks2 to chunks16 joined by +; chunks need overlap"
MOST_CHUNKS = 16
SWITCHES = ("lut", "dedup", "overlap")


@dataclass(frozen=True)
class Optimizations:
    """A combination of optimizations. chunks: 1 where own rows are not cut."""

    lut: bool = False
    dedup: bool = False
    overlap: bool = False
    chunks: int = 1

    @classmethod
    def parse(cls, text: str) -> Optimizations:
        """The combination that ``text`` names: PAPER, or words joined by +, each once.

        Raises ConfigError (key ``astra.optimizations``) for any other text.
        """
        words = [] if text == PAPER else text.split("+")
        counts = [int(found[1]) for word in words if (found := re.fullmatch(r"chunks(\d\d?)", word))]
        known = [word for word in SWITCHES if word in words]
        chunks = counts[0] if counts else 1
        wrong = len(known) + len(counts) != len(words) or len(counts) > 1
        if wrong or (counts and not (2 <= chunks <= MOST_CHUNKS and "overlap" in words)):
            raise ConfigError("astra.optimizations", text, ALLOWED)
        return cls("lut" in words, "dedup" in words, "overlap" in words, chunks)

    @property
    def precomputes(self) -> bool:
        """Whether keys and values of codewords are computed before tokens arrive.

        This needs codebooks of the residual stream and one residual stage.
        """
        return self.lut or self.dedup

    def __str__(self) -> str:
        words = [word for word in SWITCHES if getattr(self, word)]
        words += [f"chunks{self.chunks}"] if self.chunks > 1 else []
        return "+".join(words) or PAPER


def candidates(groups: int, rotary: bool) -> Iterator[Optimizations]:
    """The combinations from which ``auto`` chooses; of equally fast ones it takes the first."""
    for chunks in (1, 2, 4, 8):
        for dedup in (False, True) if groups == 1 and not rotary else (False,):
            for lut in (True, False):
                yield Optimizations(lut, dedup, overlap=True, chunks=chunks)
