"""``make measured``: measure the kept runs again, then write the pages that quote them.

The runs are in docs/measured/runs.yaml, in an order that is useful at any time. Each is a command of its own. Runs that
today's code has measured are skipped, and an interrupted one continues. The rows of a run are kept when it ends without
a failed point.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.command import run_command
from testbed.config.load import load_config
from testbed.errors import ConfigError, TestbedError, nearest, reason
from testbed.network.sandbox import run_child
from testbed.results.atomic_write import replacing
from testbed.results.kept_runs import KeptRun, earlier_revision, is_current, kept_runs
from testbed.results.measurement_hash import ROOT
from testbed.results.provenance import other_versions
from testbed.results.run_folder import RunFolder
from testbed.run import FAILED, SIGNALLED, results_folder

NAME = "measured"
RESULTS = "results"  # what kept manifests say instead of a folder of this machine


@dataclass(frozen=True)
class Plan:
    """A kept run, where its command writes, and whether its kept rows are what the command would measure today."""

    run: KeptRun
    folder: RunFolder
    done: bool

    @property
    def words(self) -> list[str]:
        """The words of its command. Rows of other code or packages are set aside; they are not continued."""
        entries = self.folder.runs()
        same = entries and all(is_current(entry) and not other_versions(entry) for entry in entries)
        others = self.folder.parquet.exists() and not same
        return [*self.run.words, *(["resume=false"] if others else [])]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: names of kept runs, or none for all. Returns testbed.run's exit codes."""
    names = sys.argv[1:] if argv is None else list(argv)
    plans = [planned(run) for run in chosen(names)]
    pending = [plan for plan in plans if not plan.done]
    print("\n".join(announced(pending, len(plans) - len(pending))), flush=True)
    lost = []
    for number, plan in enumerate(pending, 1):
        print(f"\n[{number}/{len(pending)}] {plan.run.name}: about {plan.run.minutes:g} minutes", flush=True)
        begin = time.monotonic()
        code = run_child([sys.executable, "-m", "testbed.run", *plan.words], dict(os.environ), lambda pid: pid)
        if code > SIGNALLED:
            print(f"{NAME}: ended in {plan.run.name}; the same command goes on from there", file=sys.stderr)
            return code
        if code:
            lost.append(plan.run.name)
        else:
            keep(plan.folder, plan.run.path)
        ended = "not kept: it ended with exit code" if code else "kept in"
        took = f"{(time.monotonic() - begin) / 60:.1f} minutes"
        print(f"{plan.run.name}: {ended} {code or plan.run.folder}, after {took}", flush=True)
    written = run_child([sys.executable, "-m", "analysis.claims", "--write"], dict(os.environ), lambda pid: pid)
    if lost:
        print(f"{NAME}: not all points of {', '.join(lost)} could be measured", file=sys.stderr)
    return FAILED if lost else written


def chosen(names: Sequence[str]) -> list[KeptRun]:
    """The kept runs of these names, in the order of the list. Raises ConfigError for an unknown name."""
    runs = kept_runs()
    for name in names:
        if name not in runs:
            raise ConfigError("ARGS", name, nearest(name, runs))
    return [run for name, run in runs.items() if not names or name in names]


def planned(run: KeptRun) -> Plan:
    """What is to be done for a run. Raises ConfigError if its command is wrong."""
    folder = results_folder(load_config(list(run.words)))
    return Plan(run, folder, not earlier_revision(run.path) and folder.signature in signatures(run.path))


def signatures(kept: Path) -> set[str]:
    """The signatures in the rows of a kept folder: other settings of an experiment have another one."""
    import pandas as pd

    try:
        if (kept / "results.parquet").exists():
            return set(pd.read_parquet(kept / "results.parquet", columns=["signature"])["signature"])
        return set(pd.read_csv(kept / "results.csv", usecols=["signature"], dtype=str)["signature"])
    except (OSError, ValueError):  # nothing readable is kept, so nothing of it is done
        return set()


def announced(pending: Sequence[Plan], done: int) -> list[str]:
    """The plan: minutes in all, then of each run with its command."""
    total = sum(plan.run.minutes for plan in pending)
    duration = f"{total:g} minutes" if total < 120 else f"{total / 60:.1f} hours"
    lines = [f"{len(pending)} runs, about {duration} on two cores; {done} runs are of today's code already"]
    left = total
    for plan in pending:
        lines.append(
            f"  {plan.run.minutes:>4g} min, {left:>4g} left  python -m testbed.run {shlex.join(plan.run.words)}"
        )
        left -= plan.run.minutes
    return lines


def keep(folder: RunFolder, target: Path) -> None:
    """Copy rows and manifest of a finished run to a kept folder, without paths of this machine.

    The file of rows is of the kind that the kept folder has; CSV if it is new. Raises TestbedError if it cannot be
    written.
    """
    rows = folder.parquet if (target / "results.parquet").exists() else folder.csv
    entries = [portable(entry, folder.results_dir) for entry in folder.runs()]
    text = json.dumps({"runs": entries}, indent=2, sort_keys=True, default=str) + "\n"
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TestbedError(f"{target} cannot be written: {reason(error)}") from None
    with replacing(target / rows.name) as partial:
        shutil.copyfile(rows, partial)
    with replacing(target / "manifest.json") as partial:
        partial.write_text(text, "utf-8")


def portable(value: Any, results_dir: Path) -> Any:
    """A manifest's entry in which paths of this machine are replaced: the results, the checkout, the home folder."""
    if isinstance(value, dict):
        return {portable(key, results_dir): portable(item, results_dir) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item, results_dir) for item in value]
    if not isinstance(value, str):
        return value
    for path, word in ((results_dir.absolute(), RESULTS), (results_dir, RESULTS), (ROOT, "."), (Path.home(), "~")):
        if path.is_absolute() and path != Path("/"):
            value = value.replace(str(path), word)
    return value


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
