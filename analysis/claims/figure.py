"""docs/bandwidth_sweep.png, the figure of the README, from the kept rows of its table.

Plots of equal rows differ between versions of matplotlib, so the file carries a hash of its rows, by which a test knows
whether it shows them.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from analysis.claims.document import ClaimsError
from analysis.claims.evaluate import Evaluation
from analysis.load import load_rows, results_file
from testbed.results.atomic_write import replacing
from testbed.results.measurement_hash import ROOT

PLOT = Path("docs/bandwidth_sweep.png")  # in the project
RUN = "bandwidth_sweep"
KEY = "Rows"  # of the text in the file that holds the hash


def is_stale(evaluation: Evaluation) -> bool:
    """Whether the figure is missing or shows other rows than those that are kept."""
    try:
        with Image.open(ROOT / PLOT) as image:
            return image.info.get(KEY) != _hash(evaluation)
    except OSError:
        return True


def write_figure(evaluation: Evaluation) -> list[Path]:
    """Plot the kept rows if the figure shows others. Returns the figure's path in the project, or nothing."""
    if not is_stale(evaluation):
        return []
    from analysis.latency import speedup_plot  # brings matplotlib

    text = PngInfo()
    text.add_text(KEY, _hash(evaluation))
    with tempfile.TemporaryDirectory() as folder:
        plots = speedup_plot(load_rows(evaluation.kept[RUN].run.path), folder)
        if not plots:
            raise ClaimsError(f"{RUN}: no point has a speed-up, so there is nothing to plot")
        with Image.open(plots[0]) as image, replacing(ROOT / PLOT) as partial:
            image.save(partial, "png", pnginfo=text)
    return [PLOT]


def _hash(evaluation: Evaluation) -> str:
    path = results_file(evaluation.kept[RUN].run.path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""
