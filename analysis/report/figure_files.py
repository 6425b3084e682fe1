"""Paths and captions of the figures of a report."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.describe import short_modes
from analysis.panels import conditions
from testbed.results.schema import BASELINE

# Names of the folders of figures, if there are several runs, conditions, or numbers of devices and tokens.
PLACE = re.compile(r"(run|devices|tokens|break-even|pareto)-\d+|devices-\d+-tokens-\d+")
FIGURES = (
    "speedup",
    "breakdown",
    "devices",
    "tokens",
    "break_even",
    "heterogeneous",
    "quality",
    "pareto",
    "links",
    "shapers",
    "incast",
    "segments",
)


@dataclass
class Figure:
    """A figure. files: the PNG first. caption: what it shows, and the conditions of its rows."""

    files: list[Path]
    caption: str


class Drawing:
    """Keeps track of the figures of a report. folder: of the report. drawn: every file that was drawn."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.drawn: list[Path] = []

    def figures(self, files: list[Path], caption: str, frame: pd.DataFrame) -> list[Figure]:
        """One Figure for each PNG among these files, with its PDF. frame: the rows that the caption describes."""
        self.drawn += files
        described = f"{caption} {conditions(frame)}." if short_modes(frame) else caption
        return [
            Figure([file, *(other for other in files if other == file.with_suffix(".pdf"))], described)
            for file in files
            if file.suffix == ".png"
        ]

    def possible(self) -> set[Path]:
        """Every path in this folder that a figure of a report can have."""
        below = [*self.folder.glob("*-*"), *self.folder.glob("run-*/*-*")]
        places = [self.folder, *(place for place in below if PLACE.fullmatch(place.name))]
        return {place / f"{name}{suffix}" for place in places for name in FIGURES for suffix in (".png", ".pdf")}

    def folder_of(self, name: str, number: int, of: int) -> Path:
        """The folder for figures of run or condition ``number`` of ``of``: one of its own if there are several."""
        return self.folder if of < 2 else self.folder / f"{name}-{number + 1}"

    def of_each_size(
        self, draw: Callable[[pd.DataFrame, Path], list[Path]], caption: str, frame: pd.DataFrame, place: Path
    ) -> list[Figure]:
        """The same figure for each number of devices and tokens, in folders below ``place`` if there are several."""
        return [
            figure
            for part, folder in _apart(frame, place)
            for figure in self.figures(draw(part, folder), caption, part)
        ]


def _apart(frame: pd.DataFrame, place: Path) -> list[tuple[pd.DataFrame, Path]]:
    """(rows, folder of their figures) for each number of devices and of tokens."""
    single = frame["method"] == BASELINE
    sizes = frame.loc[~single, ["devices", "tokens"]].dropna().drop_duplicates().sort_values(["devices", "tokens"])
    if len(sizes) < 2:
        return [(frame, place)]
    return [
        (
            frame[(frame["tokens"] == tokens) & (single | (frame["devices"] == devices))],
            place / f"devices-{devices:g}-tokens-{tokens:g}",
        )
        for devices, tokens in sizes.itertuples(index=False)
    ]
