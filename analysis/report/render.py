"""Sections as files: an HTML page that needs nothing beside it, Markdown, LaTeX, and a PDF where there is Chromium."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import jinja2

from analysis.report.sections import Section
from analysis.text_table import LATEX_PACKAGES

TEMPLATE = "page.html.j2"
LONG = 24  # characters: longer cells wrap, so that a page of 1200 pixels has room for the widest table
CHROMIUM = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable")
PRINT_S = 120
PNG_DPI, CSS_DPI = 150, 96  # of figures (testbed.mplstyle), and of a page: text in figures is as large as beside them


def page(title: str, subtitle: str, sections: list[Section], problems: list[str], citation: str, folder: Path) -> str:
    """The report as one HTML page with its pictures in it. folder: what the names of figures are relative to."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    environment.filters["css_width"] = lambda path: round(_png_width(path) * CSS_DPI / PNG_DPI)
    environment.filters["beside"] = lambda path: path.relative_to(folder).as_posix()
    return environment.get_template(TEMPLATE).render(
        title=title, subtitle=subtitle, sections=sections, problems=problems, citation=citation, long=LONG
    )


def _png_width(path: Path) -> int:
    """In pixels, from the file's header."""
    return int.from_bytes(path.read_bytes()[16:20], "big")


def markdown(title: str, sections: list[Section], problems: list[str], folder: Path) -> str:
    """The report's text, tables and figures in Markdown; figures as files beside it."""
    blocks = [f"# {title}\n", *(f"Left out: {problem}\n" for problem in problems)]
    for section in sections:
        blocks.append(f"## {section.title}\n")
        if not section.parts:
            blocks.append(f"{section.otherwise}\n")
        for part in section.parts:
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
        for part in section.parts
        for table in part.tables
    ]
    packages = [
        f"% \\usepackage{f'[{options}]' if options else ''}{{{name}}}" for name, options in LATEX_PACKAGES.items()
    ]
    return "\n".join(["% In the preamble; wide tables need a page in landscape:", *packages, "", *tables])


def print_pdf(html: Path) -> tuple[Path | None, str]:
    """The page as a PDF beside it, printed by a headless Chromium: (the file or None, why there is none)."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        return (
            None,
            "no PDF: there is no Chromium here to print the page (on Debian: apt-get install chromium-headless-shell)",
        )
    target = html.with_suffix(".pdf")
    target.unlink(missing_ok=True)
    # Its own sandbox does not work for root; the page has no scripts and asks for nothing.
    flags = ["--headless", "--disable-gpu", "--no-pdf-header-footer", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    command = [browser, *flags, f"--print-to-pdf={target}", html.resolve().as_uri()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PRINT_S)
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired) as fault:
        reason = type(fault).__name__
    return (target, "") if target.exists() else (None, f"no PDF: {browser} could not print the page ({reason})")
