"""What all figures share: the backend, the style, files, captions, lines with the spread of repeats, grids of panels.

Every module that draws imports this one, so the backend is chosen here and nowhere else.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws to files, so no display is needed

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, NullFormatter

from analysis.describe import setting, short_modes
from testbed.results.atomic_write import writing

STYLE = Path(__file__).parent / "testbed.mplstyle"
CAPTION: dict[str, Any] = {"fontsize": 8, "color": "#444444"}
HOLLOW: dict[str, Any] = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "color": "#444444"}
FINE: dict[str, dict[str, Any]] = {"bars": {"elinewidth": 1, "capsize": 2}, "line": {"linewidth": 1.3}}
USUAL: dict[str, dict[str, Any]] = {"bars": {"elinewidth": 1.2, "capsize": 3}, "line": {}}


def spread_line(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
    degraded: np.ndarray,
    style: dict[str, Any],
    fine: bool = False,
) -> None:
    """A line through medians, with bars from the lowest to the highest repeat and hollow markers where degraded.

    x, y: [n]. ends: (lowest, highest), [n] each. degraded: bool [n]. style: color, marker and linestyle. fine: thinner
    lines, for small panels.
    """
    low, high = ends
    widths, color = FINE if fine else USUAL, style["color"]
    axes.errorbar(x, y, yerr=np.array([y - low, high - y]), fmt="none", ecolor=color, zorder=2, **widths["bars"])
    axes.plot(x, y, color=color, linestyle=style["linestyle"], zorder=3, **widths["line"])
    for hollow in (False, True):
        which, face = degraded == hollow, "white" if hollow else color
        look: dict[str, Any] = {"linestyle": "", "marker": style["marker"], "color": color, "markerfacecolor": face}
        axes.plot(x[which], y[which], **look, zorder=4)


def panels(lines: int, columns: int, width: float, legend: float) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, [lines, columns], which share their scales.

    width: of a panel, in inches. legend: width of the legend to the right of the panels, in inches.
    """
    return plt.subplots(
        lines,
        columns,
        figsize=(width * columns + legend, 2.6 * lines + 0.9),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )


def label_panels(figure: Figure, handles: list[Line2D], degraded: bool, y: str, caption: str) -> None:
    """The legend, the label of the vertical axes and the caption.

    degraded: whether any point is; then the legend explains hollow markers.
    """
    handles = [*handles, *([Line2D([], [], **HOLLOW, label="degraded")] if degraded else [])]
    figure.legend(handles=handles, loc="outside right upper")
    figure.supylabel(y)
    caption_below(figure, caption)


def caption_below(figure: Figure, text: str) -> None:
    """A caption below a figure with a constrained layout."""
    figure.supxlabel(text, **CAPTION, x=0.01, ha="left")


def condition_caption(figure: Figure, frame: pd.DataFrame, text: str, width: int) -> None:
    """A caption of ``text`` and the conditions of the rows, in lines of ``width`` characters."""
    caption_below(figure, textwrap.fill(f"{text} {conditions(frame)}.".lstrip(), width))


def conditions(frame: pd.DataFrame) -> str:
    """Model, devices and links of the rows, then network, compute mode and time scale."""
    return f"{setting(frame)}; {short_modes(frame)}"


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write the figure as PNG and PDF, and close it. stem: path without a suffix. Returns the files, the PNG first.

    Raises TestbedError with the name of the file that cannot be written.
    """
    _write_powers_out(figure)
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]
    try:
        for path in paths:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path)
    finally:
        plt.close(figure)
    return paths


def _write_powers_out(figure: Figure) -> None:
    """Plain numbers on logarithmic axes without labels of their own.

    Matplotlib labels these axes with formulas, and a PDF then has no text to search for.
    """
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
