"""Sections as files: an HTML page with its figures in it, Markdown, LaTeX, and a PDF if Chromium is installed."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import jinja2

from analysis.report.sections import Section
from analysis.text_table import LATEX_PACKAGES
from testbed.results.atomic_write import writing

TEMPLATE = "page.html.j2"
WRAP_CHARS = 24  # longer cells wrap, so that the widest table fits a page of 1200 pixels
CHROMIUM = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable")
PRINT_S = 120
PNG_DPI, CSS_DPI = 150, 96  # of figures (testbed.mplstyle) and of a page; so text has the same size in both


def page(title: str, subtitle: str, sections: list[Section], problems: list[str], citation: str, folder: Path) -> str:
    """The report as one HTML page, with its figures embedded.

    subtitle: number of runs and dates. problems: one line for each folder that is left out. citation: how to cite the
    results. folder: of the report; paths of figures are relative to it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    environment.filters["css_width"] = lambda path: round(_png_width(path) * CSS_DPI / PNG_DPI)
    environment.filters["beside"] = lambda path: path.relative_to(folder).as_posix()
    return environment.get_template(TEMPLATE).render(
        title=title, subtitle=subtitle, sections=sections, problems=problems, citation=citation, wrap_chars=WRAP_CHARS
    )


def _png_width(path: Path) -> int:
    """Width in pixels, from the header of the file."""
    return int.from_bytes(path.read_bytes()[16:20], "big")


def markdown(title: str, sections: list[Section], problems: list[str], folder: Path) -> str:
    """The report in Markdown, with links to the files of its figures. folder: paths of figures are relative to it."""
    blocks = [f"# {title}\n", *(f"Left out: {problem}\n" for problem in problems)]
    for section in sections:
        blocks.append(f"## {section.title}\n")
        if not section.subsections:
            blocks.append(f"{section.hint}\n")
        for part in section.subsections:
            blocks += [f"### {part.title}\n"] if part.title else []
            lines = [f"- {name}: {value}" for name, value in part.facts] + [f"- {line}" for line in part.lines]
            blocks += ["\n".join(lines) + "\n"] if lines else []
            for figure in part.figures:
                blocks.append(f"![{figure.caption}]({figure.files[0].relative_to(folder).as_posix()})\n")
            blocks += [table.markdown(4) for table in part.tables]
    return "\n".join(blocks)


def latex(sections: list[Section]) -> str:
    """Every table of the report in LaTeX."""
    tables = [
        f"% {section.title}{': ' + part.title if part.title else ''}\n{table.latex()}"
        for section in sections
        for part in section.subsections
        for table in part.tables
    ]
    packages = [
        f"% \\usepackage{f'[{options}]' if options else ''}{{{name}}}" for name, options in LATEX_PACKAGES.items()
    ]
    return "\n".join(["% In the preamble; wide tables need a page in landscape:", *packages, "", *tables])


def print_pdf(html: Path) -> tuple[Path | None, str]:
    """Print the page to a PDF beside it with a headless Chromium. Returns (file, "") or (None, reason)."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        return (
            None,
            "no PDF: printing the page needs Chromium (on Debian: apt-get install chromium-headless-shell)",
        )
    target = html.with_suffix(".pdf")
    with writing(target):
        target.unlink(missing_ok=True)
    # The sandbox of Chromium does not work for root. The page has no scripts and requests nothing.
    flags = ["--headless", "--disable-gpu", "--no-pdf-header-footer", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    command = [browser, *flags, f"--print-to-pdf={target}", html.resolve().as_uri()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PRINT_S)
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired) as fault:
        reason = type(fault).__name__
    return (target, "") if target.exists() else (None, f"no PDF: {browser} could not print the page ({reason})")
