"""Read result files; make tables, figures and reports.

Of the testbed, this package knows result rows (``testbed.results``) and how commands print and end only. The names
below are enough to plot results; importing them does not import matplotlib before the first figure.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from analysis.load import ResultsError, load_rows
from analysis.points import points, speedup_table

if TYPE_CHECKING:
    from analysis.latency import speedup_plot

__all__ = ["ResultsError", "load_rows", "points", "speedup_plot", "speedup_table"]

# Where the user has no folder that matplotlib can write to, it takes a temporary one and works. That need not be said.
_TEMPORARY = ("Matplotlib created a temporary cache", "mkdir -p failed", "%s is not a writable directory")
logging.getLogger("matplotlib").addFilter(lambda record: not str(record.msg).startswith(_TEMPORARY))
# Figures go to files or into a notebook. Another backend has no use, and matplotlib is not imported if it is unknown.
if "inline" not in os.environ.get("MPLBACKEND", "inline"):
    del os.environ["MPLBACKEND"]


def __getattr__(name: str) -> Any:
    """Import ``speedup_plot``, and matplotlib with it, when it is first used."""
    if name == "speedup_plot":
        from analysis.latency import speedup_plot

        return speedup_plot
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
