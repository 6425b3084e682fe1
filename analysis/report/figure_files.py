"""Where the figures of a report lie, and what is said of each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.describe import setting, short_modes
from testbed.results.schema import BASELINE

# Folders of figures: of several runs or conditions, and of several numbers of devices and tokens of a run.
PLACE = re.compile(r"(run|devices|tokens|break-even|pareto)-\d+|devices-\d+-tokens-\d+")
FIGURES = (
    "speedup",
    "breakdown",
    "devices",
    "tokens",
    "break_even",
    "unequal",
    "quality",
    "pareto",
    "links",
    "shapers",
)


@dataclass
class Figure:
    """A drawn figure: its files, the PNG first, and what it shows, with network and compute mode."""

    files: list[Path]
    caption: str


class Drawing:
    """Draws the figures of a report into a folder, those of several runs or conditions into folders of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.drawn: list[Path] = []

    def figures(self, files: list[Path], caption: str, frame: pd.DataFrame) -> list[Figure]:
        """One Figure for each PNG among these files, with its PDF."""
        self.drawn += files
        how = f"{caption} {setting(frame)}; {short_modes(frame)}." if short_modes(frame) else caption
        return [
            Figure([file, *(other for other in files if other == file.with_suffix(".pdf"))], how)
            for file in files
            if file.suffix == ".png"
        ]

    def possible(self) -> set[Path]:
        """Every figure that is or was a report's in this folder; nothing else in it."""
        below = [*self.folder.glob("*-*"), *self.folder.glob("run-*/*-*")]
        places = [self.folder, *(place for place in below if PLACE.fullmatch(place.name))]
        return {place / f"{name}{suffix}" for place in places for name in FIGURES for suffix in (".png", ".pdf")}

    def folder_of(self, name: str, number: int, of: int) -> Path:
        """Where the figures of one of several runs or conditions belong."""
        return self.folder if of < 2 else self.folder / f"{name}-{number + 1}"

    def of_each_size(
        self, draw: Callable[[pd.DataFrame, Path], list[Path]], caption: str, frame: pd.DataFrame, place: Path
    ) -> list[Figure]:
        """The same figure for each number of devices and tokens, in folders below ``place`` where there are several."""
        return [
            figure
            for part, folder in _apart(frame, place)
            for figure in self.figures(draw(part, folder), caption, part)
        ]


def _apart(frame: pd.DataFrame, place: Path) -> list[tuple[pd.DataFrame, Path]]:
    """The rows of each number of devices and of tokens, and a folder for their figures; one part where there is one."""
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
