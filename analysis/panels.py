"""What figures of measured points have in common: lines with the spread of repeats, and grids of small panels."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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
    """A line through medians with bars from the lowest to the highest repeat, hollow markers where degraded.

    ends: lowest and highest. style: color, marker and linestyle. fine: for small panels.
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
    """A figure and its grid of axes, [lines, columns], which share their scales. width, legend: inches beside each."""
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
    """The legend, with hollow markers if any point is degraded, what the vertical axes show, and the caption."""
    handles = [*handles, *([Line2D([], [], **HOLLOW, label="degraded")] if degraded else [])]
    figure.legend(handles=handles, loc="outside right upper")
    figure.supylabel(y)
    figure.supxlabel(caption, fontsize=8, color="#444444", x=0.01, ha="left")
