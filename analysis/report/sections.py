"""The sections of a report: their figures and tables, and the command that measures a missing one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from analysis.accuracy import accuracy_figures, accuracy_tables
from analysis.break_even import break_even_map, break_even_table
from analysis.describe import MODEL, by_corpus, evaluated_on, is_analytic, joined
from analysis.heterogeneous import heterogeneous_plot, heterogeneous_table
from analysis.incast import incast_figures, link_tables
from analysis.latency import latency_breakdown, speedup_plot
from analysis.latency_tables import latency_tables, mode_comparison, problem_tables
from analysis.links import fidelity_figures
from analysis.panels import conditions
from analysis.paper.accounting import accounting_table
from analysis.paper.peers import peers_table
from analysis.paper.table import paper_table
from analysis.pareto import trade_off_plot, trade_off_table, trade_offs
from analysis.report.figure_files import Drawing, Figure
from analysis.report.headlines import headlines
from analysis.report.run_facts import calibration_table, facts
from analysis.runs import Run, alike, of_kind
from analysis.scaling import devices_plot, tokens_plot, tokens_tables
from analysis.segments import segment_figure, segment_tables
from analysis.text_table import TextTable
from testbed.results.schema import ACCURACY, BASELINE, FIDELITY, LATENCY, SEGMENT

RUN = ".venv/bin/python -m testbed.run"
SPEEDUP_CAPTION = (
    "Speed-up over one device of the same run. Bars: slowest to fastest repeat. Hollow markers: degraded fidelity. "
    "Stars: reported by the paper."
)
BREAKDOWN_CAPTION = (
    "Parts of the latency, of the device that finishes last. Wire: blocked while data arrives. Wait: blocked before "
    "the first byte arrives. Left: in ms. Right: in percent of the latency."
)


@dataclass
class Subsection:
    """What one run, or one set of conditions, contributes to a section. facts: (name, value) pairs."""

    title: str
    lines: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[TextTable] = field(default_factory=list)

    @property
    def has_content(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.lines or self.facts or self.figures or self.tables)


@dataclass
class Section:
    """A section. hint: shown if there are no subsections; it names the command that measures what is missing."""

    title: str
    subsections: list[Subsection]
    hint: str = ""

    @property
    def anchor(self) -> str:
        """The target of links within the page."""
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


Maker: TypeAlias = Callable[[pd.DataFrame, Path, Drawing], Subsection]


def sections(runs: list[Run], drawing: Drawing) -> list[Section]:
    """All sections of a report about these runs, in the order of the page.

    drawing: draws the figures. Sections without results stay, with their hint.
    """
    latency, groups = of_kind(runs, LATENCY), alike(runs)
    quality, links = of_kind(runs, ACCURACY), of_kind(runs, FIDELITY)
    places = [drawing.folder_of("run", number, len(runs)) for number in range(len(runs))]
    where = {id(run): place for run, place in zip(runs, places, strict=True)}
    measured = [frame for frame in groups if not is_analytic(frame)]
    # Results of the cost model come after measured ones, in subsections of their own.
    by_devices, by_tokens = sorted(groups, key=is_analytic), sorted(alike(runs, over="tokens"), key=is_analytic)
    found = [
        Section("What was run", [Subsection(_title(run, runs), run.notes, facts(run)) for run in runs]),
        Section("Main results", [Subsection(_title(run, runs), headlines(run.frame)) for run in runs]),
        Section(
            "Speed-up against bandwidth",
            [_speedup(run, _title(run, runs), where[id(run)], drawing) for run in latency],
            f"No latencies here. Run: {RUN} +experiment=bandwidth_sweep",
        ),
        Section(
            "Speed-up against the number of devices",
            _each(by_devices, "devices", drawing, _devices),
            f"Needs two numbers of devices. Run: {RUN} +experiment=bandwidth_sweep 'devices=[2,4,6]'",
        ),
        Section(
            "Speed-up against the number of tokens",
            _each(_of_devices(by_tokens), "tokens", drawing, _tokens),
            f"Needs two numbers of tokens. Run: {RUN} +experiment=token_sweep",
        ),
        Section(
            "Parts of the latency",
            [_breakdown(run, _title(run, runs), where[id(run)], drawing) for run in latency],
            f"No latencies here. Run: {RUN} +experiment=bandwidth_sweep",
        ),
        Section(
            "Break-even bandwidth",
            _each(by_tokens, "break-even", drawing, _break_even),
            f"Needs single and another method at two bandwidths or more. Run: {RUN} +experiment=bandwidth_sweep",
        ),
        Section(
            "Heterogeneous devices",
            [_heterogeneous(run, _title(run, runs), where[id(run)], drawing) for run in latency],
            f"Needs both partitions, equal and speed, on a device mix. Run: {RUN} +experiment=heterogeneous_devices",
        ),
        Section(
            "Model quality against bits per token",
            [_quality(run, _title(run, runs), where[id(run)], drawing) for run in quality],
            f"No accuracy or perplexity was measured here. Run: {RUN} +experiment=accuracy_vit preset=ci",
        ),
        _pareto(measured, quality, drawing),
        Section(
            "Fidelity of the emulated links",
            [_links(run, _title(run, runs), where[id(run)], drawing) for run in links],
            f"The links were not measured alone here. Run: {RUN} +experiment=fidelity 'rates=[10,100]' devices=4",
        ),
        Section(
            "Predicted and measured times of segments",
            [_segments(run, _title(run, runs), where[id(run)], drawing) for run in of_kind(runs, SEGMENT)],
            f"No segment was computed alone here. Run: {RUN} +experiment=device_check",
        ),
        Section(
            "Comparison of compute modes",
            [Subsection(_title(run, runs), tables=_rows(mode_comparison(run.frame))) for run in latency],
            f"Each point has one compute mode here. Run: {RUN} +experiment=clock_check",
        ),
        Section(
            "Calibration, degraded and failed points",
            [_problems(run, _title(run, runs)) for run in runs],
            "No run here has a calibration, and no point is degraded or failed.",
        ),
        Section("Comparison with the paper", [_paper(runs)]),
        Section("Comparison with related work", [Subsection("", tables=[peers_table(groups)])]),
    ]
    for section in found:
        section.subsections = [part for part in section.subsections if part.has_content]
    return found


def _title(run: Run, runs: list[Run]) -> str:
    """The name of a run, with its number if there are several."""
    return run.experiment if len(runs) == 1 else f"Run {runs.index(run) + 1}: {run.experiment}"


def _rows(*tables: TextTable) -> list[TextTable]:
    return [table for table in tables if table.rows]


def _each(frames: list[pd.DataFrame], name: str, drawing: Drawing, make: Maker) -> list[Subsection]:
    return [make(frame, drawing.folder_of(name, number, len(frames)), drawing) for number, frame in enumerate(frames)]


def _speedup(run: Run, title: str, place: Path, drawing: Drawing) -> Subsection:
    caption = f"Speed-up over one device, {MODEL}." if is_analytic(run.frame) else SPEEDUP_CAPTION
    figures = drawing.of_each_size(speedup_plot, caption, run.frame, place)
    return Subsection(title, figures=figures, tables=[*latency_tables(run.frame), *_rows(accounting_table(run.frame))])


def _devices(frame: pd.DataFrame, place: Path, drawing: Drawing) -> Subsection:
    caption = "Speed-up over one device. Dashed: linear speed-up."
    return Subsection(conditions(frame), figures=drawing.figures(devices_plot(frame, place), caption, frame))


def _of_devices(frames: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """One frame for each number of devices, with the rows of ``single``."""
    parallel = [(frame, frame[frame["method"] != BASELINE]) for frame in frames]
    return [
        frame[(frame["devices"] == devices) | (frame["method"] == BASELINE)]
        for frame, rows in parallel
        for devices in sorted(rows["devices"].dropna().unique())
    ]


def _tokens(frame: pd.DataFrame, place: Path, drawing: Drawing) -> Subsection:
    figures = drawing.figures(tokens_plot(frame, place), "Speed-up over one device.", frame)
    return Subsection(conditions(frame), figures=figures, tables=tokens_tables(frame))


def _breakdown(run: Run, title: str, place: Path, drawing: Drawing) -> Subsection:
    return Subsection(title, figures=drawing.of_each_size(latency_breakdown, BREAKDOWN_CAPTION, run.frame, place))


def _break_even(frame: pd.DataFrame, place: Path, drawing: Drawing) -> Subsection:
    caption = "The lowest bandwidth at which a method is faster than one device, for each number of devices."
    figures = drawing.figures(break_even_map(frame, place), caption, frame)
    return Subsection(conditions(frame), figures=figures, tables=_rows(break_even_table(frame)))


def _heterogeneous(run: Run, title: str, place: Path, drawing: Drawing) -> Subsection:
    caption = "Equal partition and partition in proportion to speed, on heterogeneous devices."
    figures = drawing.figures(heterogeneous_plot(run.frame, place), caption, run.frame)
    return Subsection(title, figures=figures, tables=_rows(heterogeneous_table(run.frame)))


def _quality(run: Run, title: str, place: Path, drawing: Drawing) -> Subsection:
    caption = f"Change from the uncompressed baseline. {evaluated_on(run.frame)}."
    figures = drawing.figures(accuracy_figures(run.frame, place), caption, run.frame.iloc[:0])
    return Subsection(title, figures=figures, tables=accuracy_tables(run.frame))


def _pareto(latency: list[pd.DataFrame], quality: list[Run], drawing: Drawing) -> Section:
    pairs = [(frame, evaluated) for frame in latency for run in quality for evaluated in by_corpus(run.frame)]
    tables = [(trade_offs(frame, evaluated), frame, evaluated) for frame, evaluated in pairs]
    tables = [found for found in tables if not found[0].empty]
    parts = []
    for number, (table, frame, evaluated) in enumerate(tables):
        place = drawing.folder_of("pareto", number, len(tables))
        caption = (
            "Accuracy or perplexity over latency. Gray line: Pareto front; no other point is both faster and better."
        )
        figures = drawing.figures(trade_off_plot(table, frame, evaluated, place), caption, frame)
        parts.append(Subsection(conditions(frame), figures=figures, tables=[trade_off_table(table, evaluated)]))
    return Section("Model quality against latency", parts, _pareto_hint(latency, quality))


def _pareto_hint(latency: list[pd.DataFrame], quality: list[Run]) -> str:
    if not quality or not latency:
        return (
            f"Needs latency and accuracy (or perplexity) of one model. Run: {RUN} +experiment=accuracy_vit, then "
            f"{RUN} +experiment=bandwidth_sweep model=vit_tiny tokens=49 'astra.groups=[1,8]'"
        )
    models = ", ".join(dict.fromkeys(joined(frame, "model") for frame in latency))
    evaluated = ", ".join(dict.fromkeys(joined(run.frame, "model") for run in quality))
    return (
        f"Latencies are of {models}, accuracies are of {evaluated}: no variant of one model has both. Run: {RUN} "
        "+experiment=bandwidth_sweep with model, astra.groups and astra.codebook_size of the accuracies"
    )


def _links(run: Run, title: str, place: Path, drawing: Drawing) -> Subsection:
    caption = "Time of messages over the emulated links divided by the ideal time. Gray: within 10% of the ideal time."
    figures = drawing.figures(fidelity_figures(run.frame, place), caption, run.frame)
    of_incast = "Goodput of devices that all send to one device, against the queue length, by the order of the senders."
    figures += drawing.figures(incast_figures(run.frame, place), of_incast, run.frame)
    return Subsection(title, figures=figures, tables=link_tables(run.frame))


def _segments(run: Run, title: str, place: Path, drawing: Drawing) -> Subsection:
    caption = "Time of each segment by the device profile, over its measured time."
    figures = drawing.figures(segment_figure(run.frame, place), caption, run.frame)
    return Subsection(title, figures=figures, tables=segment_tables(run.frame))


def _problems(run: Run, title: str) -> Subsection:
    tables = _rows(calibration_table(run))
    return Subsection(title, tables=tables + (problem_tables(run.frame) if run.schema is LATENCY else []))


def comparison(runs: list[Run]) -> TextTable:
    """Every result that the paper reports beside ours, or with the reason why there is none (``paper_table``)."""
    latency, quality = ([run.frame for run in of_kind(runs, schema)] for schema in (LATENCY, ACCURACY))
    return paper_table(latency, quality)


def _paper(runs: list[Run]) -> Subsection:
    lines = ["Results that the paper, arXiv 2505.19342, reports, beside those of the runs of this page."]
    return Subsection("", lines, tables=[comparison(runs)])
