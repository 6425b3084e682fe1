"""The list of kept runs for docs/measured/README.md: commands, and what the rows themselves say about each run."""

from __future__ import annotations

import shlex
import textwrap

from analysis.claims.conditions import DEGRADED
from analysis.claims.evaluate import Evaluation, Kept
from analysis.claims.text import wrapped
from testbed.results.kept_runs import KeptRun

WIDTH = 118  # two characters are left for the backslash of a continued line
PYTHON = "python -m testbed.run"


def runs_list(evaluation: Evaluation, kind: str) -> str:
    """The runs of a kind: a list with what is known of each, then their commands in the same order."""
    kept = [each for each in evaluation.kept.values() if each.run.kind == kind]
    items = "\n".join(f"- `{each.run.name}`: {_facts(each)}" for each in kept)
    commands = "\n".join(_typed(each.run) for each in kept)
    return f"{wrapped(items)}\n\n```bash\n{commands}\n```"


def command(run: KeptRun) -> str:
    """The command of a run, as it is typed."""
    return f"{PYTHON} {shlex.join(run.words)}"


def _typed(run: KeptRun) -> str:
    """The lines of a command, with the run's name as a comment."""
    line = f"{command(run)}  # {run.name}"
    if len(line) <= WIDTH:
        return line
    lines = textwrap.wrap(command(run), WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return f"# {run.name}\n" + " \\\n".join(lines)


def _facts(kept: Kept) -> str:
    points = kept.points
    degraded = int(points[DEGRADED].sum())
    minutes = kept.run.minutes
    parts = [f"{minutes:g} minute{'s' if minutes != 1 else ''}", f"{len(points)} points"]
    if "fidelity" in points:
        parts.append(f"{degraded or 'none'} degraded")
    if "residual_pct" in points and points["residual_pct"].notna().any():
        residual = points["residual_pct"].dropna().abs()
        parts.append(f"{int((residual <= 3).sum())} of {len(residual)} medians within 3% of the cost model")
        parts.append(f"all within {residual.max():.1f}%")
    age = f"Rows of an earlier revision ({kept.measured})." if kept.measured else "Rows of this revision."
    return " ".join(filter(None, [f"{', '.join(parts)}.", age, kept.run.about]))
