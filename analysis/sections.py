"""The sections of a report: what each question's answer consists of, and what to run where there is none yet."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from analysis.accuracy import accuracy_figures, accuracy_tables
from analysis.cells import TextTable, grids, mode_comparison, troubles
from analysis.fidelity import fidelity_figures, fidelity_tables
from analysis.figures import latency_breakdown, speedup_plot
from analysis.headlines import headlines
from analysis.paper_table import paper_table
from analysis.provenance import calibration_table, facts
from analysis.runs import Run, alike, of_kind
from analysis.scaling import break_even_map, break_even_table, devices_plot
from analysis.tradeoff import trade_off_plot, trade_off_table, trade_offs
from analysis.words import by_corpus, joined, judged_on, setting, short_modes
from testbed.rows import ACCURACY, FIDELITY, LATENCY

RUN = ".venv/bin/python -m testbed.run"
PLACE = re.compile(r"(run|devices|break-even|pareto)-\d+")  # folders of figures, of several runs or conditions
SPEEDUP_CAPTION = (
    "Speed-up over one device of the same run; bars from the slowest to the fastest repeat, hollow markers where "
    "fidelity is degraded, stars for what the paper reports."
)
BREAKDOWN_CAPTION = (
    "Where the time of the device that finished last goes. Wire: blocked while data arrived; wait: blocked before "
    "their first byte. Left in ms, right as shares."
)


@dataclass
class Figure:
    """A drawn figure: its files, the PNG first, and what it shows, with network and compute mode."""

    files: list[Path]
    caption: str


@dataclass
class Part:
    """What one run, or one set of conditions, adds to a section."""

    title: str
    lines: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[TextTable] = field(default_factory=list)

    @property
    def shows(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.lines or self.facts or self.figures or self.tables)


@dataclass
class Section:
    """A question and its answers. otherwise: one line that says what to run where there are none."""

    title: str
    parts: list[Part]
    otherwise: str = ""

    @property
    def anchor(self) -> str:
        """For links within the page."""
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


FIGURES = ("speedup", "breakdown", "devices", "break_even", "quality", "pareto", "links", "shapers")


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
        places = [self.folder, *(place for place in self.folder.glob("*-*") if PLACE.fullmatch(place.name))]
        return {place / f"{name}{suffix}" for place in places for name in FIGURES for suffix in (".png", ".pdf")}

    def folder_of(self, name: str, number: int, of: int) -> Path:
        """Where the figures of one of several runs or conditions belong."""
        return self.folder if of < 2 else self.folder / f"{name}-{number + 1}"


Maker: TypeAlias = Callable[[pd.DataFrame, Path, Drawing], Part]


def sections(runs: list[Run], drawing: Drawing) -> list[Section]:
    """Everything that can be said of these runs, in the order in which it is read."""
    latency, groups = of_kind(runs, LATENCY), alike(runs)
    quality, links = of_kind(runs, ACCURACY), of_kind(runs, FIDELITY)
    places = [drawing.folder_of("run", number, len(runs)) for number in range(len(runs))]
    where = {id(run): place for run, place in zip(runs, places, strict=True)}
    measured = [frame for frame in groups if "analytic" not in set(frame["compute_mode"])]
    found = [
        Section("What was run", [Part(_title(run, runs), run.notes, facts(run)) for run in runs]),
        Section("Headlines", [Part(_title(run, runs), headlines(run.frame)) for run in runs]),
        Section(
            "Speed-up against bandwidth",
            [_speedup(run, _title(run, runs), where[id(run)], drawing) for run in latency],
            f"No latencies here. Run: {RUN} +experiment=bandwidth_sweep",
        ),
        Section(
            "Speed-up against the number of devices",
            _each(measured, "devices", drawing, _devices),
            f"Needs two numbers of devices. Run: {RUN} +experiment=bandwidth_sweep devices=[2,4,6]",
        ),
        Section(
            "Where the time goes",
            [_breakdown(run, _title(run, runs), where[id(run)], drawing) for run in latency],
            f"No latencies here. Run: {RUN} +experiment=bandwidth_sweep",
        ),
        Section(
            "Break-even bandwidth",
            _each(measured, "break-even", drawing, _break_even),
            f"Needs single and another method at two bandwidths. Run: {RUN} +experiment=bandwidth_sweep",
        ),
        Section(
            "Quality against bits",
            [_quality(run, _title(run, runs), where[id(run)], drawing) for run in quality],
            f"No quality was measured here. Run: {RUN} +experiment=accuracy_vit preset=ci",
        ),
        _pareto(measured, quality, drawing),
        Section(
            "Can the links be trusted",
            [_links(run, _title(run, runs), where[id(run)], drawing) for run in links],
            f"The links were not measured by themselves here. Run: {RUN} +experiment=fidelity rates=[10,100] devices=4",
        ),
        Section(
            "Compute modes compared",
            [Part(_title(run, runs), tables=_rows(mode_comparison(run.frame))) for run in latency],
            f"Each point was measured in one mode here. Run: {RUN} +experiment=clock_check",
        ),
        Section(
            "Calibration, degraded and failed points",
            [_trust(run, _title(run, runs)) for run in runs],
            "No run here kept a calibration, and no point is degraded or failed.",
        ),
        Section("The paper's figures beside ours", [_paper(runs)]),
    ]
    for section in found:
        section.parts = [part for part in section.parts if part.shows]
    return found


def _title(run: Run, runs: list[Run]) -> str:
    """A run's name, with its number where there are several."""
    return run.experiment if len(runs) == 1 else f"Run {runs.index(run) + 1}: {run.experiment}"


def _rows(*tables: TextTable) -> list[TextTable]:
    return [table for table in tables if table.rows]


def _each(frames: list[pd.DataFrame], name: str, drawing: Drawing, make: Maker) -> list[Part]:
    return [make(frame, drawing.folder_of(name, number, len(frames)), drawing) for number, frame in enumerate(frames)]


def _speedup(run: Run, title: str, place: Path, drawing: Drawing) -> Part:
    figures = drawing.figures(speedup_plot(run.frame, place), SPEEDUP_CAPTION, run.frame)
    return Part(title, figures=figures, tables=grids(run.frame))


def _devices(frame: pd.DataFrame, place: Path, drawing: Drawing) -> Part:
    caption = "Speed-up over one device; dashed: as many times as fast as there are devices."
    return Part(_conditions(frame), figures=drawing.figures(devices_plot(frame, place), caption, frame))


def _breakdown(run: Run, title: str, place: Path, drawing: Drawing) -> Part:
    return Part(title, figures=drawing.figures(latency_breakdown(run.frame, place), BREAKDOWN_CAPTION, run.frame))


def _break_even(frame: pd.DataFrame, place: Path, drawing: Drawing) -> Part:
    caption = "For each method and number of devices, the lowest bandwidth at which it beats one device."
    figures = drawing.figures(break_even_map(frame, place), caption, frame)
    return Part(_conditions(frame), figures=figures, tables=_rows(break_even_table(frame)))


def _quality(run: Run, title: str, place: Path, drawing: Drawing) -> Part:
    caption = f"Change against the uncompressed model. {judged_on(run.frame)}."
    figures = drawing.figures(accuracy_figures(run.frame, place), caption, run.frame.iloc[:0])
    return Part(title, figures=figures, tables=accuracy_tables(run.frame))


def _pareto(latency: list[pd.DataFrame], quality: list[Run], drawing: Drawing) -> Section:
    pairs = [(frame, judged) for frame in latency for run in quality for judged in by_corpus(run.frame)]
    tables = [(trade_offs(frame, judged), frame, judged) for frame, judged in pairs]
    tables = [found for found in tables if not found[0].empty]
    parts = []
    for number, (table, frame, judged) in enumerate(tables):
        place = drawing.folder_of("pareto", number, len(tables))
        caption = "Quality over latency; what is on the line is beaten by no other point in both."
        figures = drawing.figures(trade_off_plot(table, frame, judged, place), caption, frame)
        parts.append(Part(_conditions(frame), figures=figures, tables=[trade_off_table(table, judged)]))
    return Section("Quality against latency", parts, _pareto_otherwise(latency, quality))


def _pareto_otherwise(latency: list[pd.DataFrame], quality: list[Run]) -> str:
    if not quality or not latency:
        return (
            f"Needs latency and quality of one model. Run: {RUN} +experiment=accuracy_vit, then "
            f"{RUN} +experiment=bandwidth_sweep model=vit_tiny tokens=49 astra.groups=[1,8]"
        )
    models = ", ".join(dict.fromkeys(joined(frame, "model") for frame in latency))
    judged = ", ".join(dict.fromkeys(joined(run.frame, "model") for run in quality))
    return (
        f"Latencies are of {models}, quality is of {judged}: no variant of one model has both. Run: {RUN} "
        "+experiment=bandwidth_sweep with that model, astra.groups and astra.codebook_size"
    )


def _links(run: Run, title: str, place: Path, drawing: Drawing) -> Part:
    caption = "Time over ideal of messages across the emulated links; grey: 10% around the ideal."
    figures = drawing.figures(fidelity_figures(run.frame, place), caption, run.frame)
    return Part(title, figures=figures, tables=fidelity_tables(run.frame))


def _trust(run: Run, title: str) -> Part:
    tables = _rows(calibration_table(run))
    return Part(title, tables=tables + (troubles(run.frame) if run.schema is LATENCY else []))


def comparison(runs: list[Run]) -> TextTable:
    """Every figure of the paper with ours beside it, or why there is none."""
    latency, quality = ([run.frame for run in of_kind(runs, schema)] for schema in (LATENCY, ACCURACY))
    return paper_table(latency, quality)


def _paper(runs: list[Run]) -> Part:
    lines = ["Figures of arXiv 2505.19342 as it reports them; ours where these results have any beside them."]
    return Part("", lines, tables=[comparison(runs)])


def _conditions(frame: pd.DataFrame) -> str:
    return f"{setting(frame)}; {short_modes(frame)}"
