"""The sections of a report: what each question's answer consists of, and what to run where there is none yet."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from analysis.accuracy import accuracy_figures, accuracy_tables
from analysis.break_even import break_even_map, break_even_table
from analysis.describe import MODEL, by_corpus, is_analytic, joined, judged_on, setting, short_modes
from analysis.heterogeneous import unequal_plot, unequal_table
from analysis.incast import incast_figures, link_tables
from analysis.latency import latency_breakdown, speedup_plot
from analysis.links import fidelity_figures
from analysis.paper.accounting import accounting_table
from analysis.paper.peers import peers_table
from analysis.paper.table import paper_table
from analysis.pareto import trade_off_plot, trade_off_table, trade_offs
from analysis.report.figure_files import Drawing, Figure
from analysis.report.headlines import headlines
from analysis.report.run_facts import calibration_table, facts
from analysis.runs import Run, alike, of_kind
from analysis.scaling import devices_plot, tokens_plot, tokens_tables
from analysis.text_table import TextTable, grids, mode_comparison, troubles
from testbed.results.schema import ACCURACY, BASELINE, FIDELITY, LATENCY

RUN = ".venv/bin/python -m testbed.run"
SPEEDUP_CAPTION = (
    "Speed-up over one device of the same run; bars from the slowest to the fastest repeat, hollow markers where "
    "fidelity is degraded, stars for what the paper reports."
)
BREAKDOWN_CAPTION = (
    "Where the time of the device that finished last goes. Wire: blocked while data arrived; wait: blocked before "
    "their first byte. Left in ms, right as shares."
)


@dataclass
class PartialAttention:
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
    parts: list[PartialAttention]
    otherwise: str = ""

    @property
    def anchor(self) -> str:
        """For links within the page."""
        return re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")


Maker: TypeAlias = Callable[[pd.DataFrame, Path, Drawing], PartialAttention]


def sections(runs: list[Run], drawing: Drawing) -> list[Section]:
    """Everything that can be said of these runs, in the order in which it is read."""
    latency, groups = of_kind(runs, LATENCY), alike(runs)
    quality, links = of_kind(runs, ACCURACY), of_kind(runs, FIDELITY)
    places = [drawing.folder_of("run", number, len(runs)) for number in range(len(runs))]
    where = {id(run): place for run, place in zip(runs, places, strict=True)}
    measured = [frame for frame in groups if not is_analytic(frame)]
    # What the cost model says comes after what was measured, in parts of its own.
    by_devices, by_tokens = sorted(groups, key=is_analytic), sorted(alike(runs, over="tokens"), key=is_analytic)
    found = [
        Section("What was run", [PartialAttention(_title(run, runs), run.notes, facts(run)) for run in runs]),
        Section("Headlines", [PartialAttention(_title(run, runs), headlines(run.frame)) for run in runs]),
        Section(
            "Speed-up against bandwidth",
            [_speedup(run, _title(run, runs), where[id(run)], drawing) for run in latency],
            f"No latencies here. Run: {RUN} +experiment=bandwidth_sweep",
        ),
        Section(
            "Speed-up against the number of devices",
            _each(by_devices, "devices", drawing, _devices),
            f"Needs two numbers of devices. Run: {RUN} +experiment=bandwidth_sweep devices=[2,4,6]",
        ),
        Section(
            "Speed-up against the number of tokens",
            _each(_of_devices(by_tokens), "tokens", drawing, _tokens),
            f"Needs two numbers of tokens. Run: {RUN} +experiment=token_sweep",
        ),
        Section(
            "Where the time goes",
            [_breakdown(run, _title(run, runs), where[id(run)], drawing) for run in latency],
            f"No latencies here. Run: {RUN} +experiment=bandwidth_sweep",
        ),
        Section(
            "Break-even bandwidth",
            _each(by_tokens, "break-even", drawing, _break_even),
            f"Needs single and another method at two bandwidths. Run: {RUN} +experiment=bandwidth_sweep",
        ),
        Section(
            "Unequal devices",
            [_unequal(run, _title(run, runs), where[id(run)], drawing) for run in latency],
            f"Needs equal shares and shares by speed on a mix of devices. Run: {RUN} +experiment=heterogeneous_devices",
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
            [PartialAttention(_title(run, runs), tables=_rows(mode_comparison(run.frame))) for run in latency],
            f"Each point was measured in one mode here. Run: {RUN} +experiment=clock_check",
        ),
        Section(
            "Calibration, degraded and failed points",
            [_trust(run, _title(run, runs)) for run in runs],
            "No run here kept a calibration, and no point is degraded or failed.",
        ),
        Section("The paper's figures beside ours", [_paper(runs)]),
        Section("Peers' figures beside ours", [PartialAttention("", tables=[peers_table(groups)])]),
    ]
    for section in found:
        section.parts = [part for part in section.parts if part.shows]
    return found


def _title(run: Run, runs: list[Run]) -> str:
    """A run's name, with its number where there are several."""
    return run.experiment if len(runs) == 1 else f"Run {runs.index(run) + 1}: {run.experiment}"


def _rows(*tables: TextTable) -> list[TextTable]:
    return [table for table in tables if table.rows]


def _each(frames: list[pd.DataFrame], name: str, drawing: Drawing, make: Maker) -> list[PartialAttention]:
    return [make(frame, drawing.folder_of(name, number, len(frames)), drawing) for number, frame in enumerate(frames)]


def _speedup(run: Run, title: str, place: Path, drawing: Drawing) -> PartialAttention:
    caption = f"Speed-up over one device, {MODEL}." if is_analytic(run.frame) else SPEEDUP_CAPTION
    figures = drawing.of_each_size(speedup_plot, caption, run.frame, place)
    return PartialAttention(title, figures=figures, tables=[*grids(run.frame), *_rows(accounting_table(run.frame))])


def _devices(frame: pd.DataFrame, place: Path, drawing: Drawing) -> PartialAttention:
    caption = "Speed-up over one device; dashed: as many times as fast as there are devices."
    return PartialAttention(_conditions(frame), figures=drawing.figures(devices_plot(frame, place), caption, frame))


def _of_devices(frames: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """The rows of each number of devices apart, with those of one device."""
    parallel = [(frame, frame[frame["method"] != BASELINE]) for frame in frames]
    return [
        frame[(frame["devices"] == devices) | (frame["method"] == BASELINE)]
        for frame, rows in parallel
        for devices in sorted(rows["devices"].dropna().unique())
    ]


def _tokens(frame: pd.DataFrame, place: Path, drawing: Drawing) -> PartialAttention:
    figures = drawing.figures(tokens_plot(frame, place), "Speed-up over one device.", frame)
    return PartialAttention(_conditions(frame), figures=figures, tables=tokens_tables(frame))


def _breakdown(run: Run, title: str, place: Path, drawing: Drawing) -> PartialAttention:
    return PartialAttention(title, figures=drawing.of_each_size(latency_breakdown, BREAKDOWN_CAPTION, run.frame, place))


def _break_even(frame: pd.DataFrame, place: Path, drawing: Drawing) -> PartialAttention:
    caption = "For each method and number of devices, the lowest bandwidth at which it beats one device."
    figures = drawing.figures(break_even_map(frame, place), caption, frame)
    return PartialAttention(_conditions(frame), figures=figures, tables=_rows(break_even_table(frame)))


def _unequal(run: Run, title: str, place: Path, drawing: Drawing) -> PartialAttention:
    caption = "What shares in proportion to speed change, on devices of unequal speed."
    figures = drawing.figures(unequal_plot(run.frame, place), caption, run.frame)
    return PartialAttention(title, figures=figures, tables=_rows(unequal_table(run.frame)))


def _quality(run: Run, title: str, place: Path, drawing: Drawing) -> PartialAttention:
    caption = f"Change against the uncompressed model. {judged_on(run.frame)}."
    figures = drawing.figures(accuracy_figures(run.frame, place), caption, run.frame.iloc[:0])
    return PartialAttention(title, figures=figures, tables=accuracy_tables(run.frame))


def _pareto(latency: list[pd.DataFrame], quality: list[Run], drawing: Drawing) -> Section:
    pairs = [(frame, judged) for frame in latency for run in quality for judged in by_corpus(run.frame)]
    tables = [(trade_offs(frame, judged), frame, judged) for frame, judged in pairs]
    tables = [found for found in tables if not found[0].empty]
    parts = []
    for number, (table, frame, judged) in enumerate(tables):
        place = drawing.folder_of("pareto", number, len(tables))
        caption = "Quality over latency; what is on the line is beaten by no other point in both."
        figures = drawing.figures(trade_off_plot(table, frame, judged, place), caption, frame)
        parts.append(PartialAttention(_conditions(frame), figures=figures, tables=[trade_off_table(table, judged)]))
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


def _links(run: Run, title: str, place: Path, drawing: Drawing) -> PartialAttention:
    caption = "Time over ideal of messages across the emulated links; gray: 10% around the ideal."
    figures = drawing.figures(fidelity_figures(run.frame, place), caption, run.frame)
    of_incast = (
        "Goodput of many devices that send to one against the length of the queue, by the order in which they send."
    )
    figures += drawing.figures(incast_figures(run.frame, place), of_incast, run.frame)
    return PartialAttention(title, figures=figures, tables=link_tables(run.frame))


def _trust(run: Run, title: str) -> PartialAttention:
    tables = _rows(calibration_table(run))
    return PartialAttention(title, tables=tables + (troubles(run.frame) if run.schema is LATENCY else []))


def comparison(runs: list[Run]) -> TextTable:
    """Every figure of the paper with ours beside it, or why there is none."""
    latency, quality = ([run.frame for run in of_kind(runs, schema)] for schema in (LATENCY, ACCURACY))
    return paper_table(latency, quality)


def _paper(runs: list[Run]) -> PartialAttention:
    lines = ["Figures of arXiv 2505.19342 as it reports them; ours where these results have any beside them."]
    return PartialAttention("", lines, tables=[comparison(runs)])


def _conditions(frame: pd.DataFrame) -> str:
    return f"{setting(frame)}; {short_modes(frame)}"
