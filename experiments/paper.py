"""``make paper``: run the experiments behind the paper's tables and figures, then report all of them together.

Each experiment is a separate command (analysis/paper/configs.csv lists them) that users may also run alone. Points that
either command has finished are not measured again. If one experiment fails, only its own rows are missing.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.load import results_file
from analysis.paper.latency import paper_configs
from analysis.report.__main__ import main as report_main
from analysis.report.terminal import print_comparison
from testbed.command import BAD_INPUT, run_command
from testbed.config.load import load_config
from testbed.errors import TestbedError
from testbed.network.sandbox import run_child
from testbed.run import FAILED, OK, SIGNALLED, results_folder

NAME = "paper"
WHOLE = "full"  # name of the report's folder if no preset is chosen


@dataclass(frozen=True)
class PaperExperiment:
    """One experiment. minutes: estimate for two cores. folder: its results, which depends on all settings."""

    config: str
    what: str
    minutes: float
    words: list[str]
    folder: Path

    @property
    def command(self) -> str:
        """The command for this experiment alone."""
        return f"python -m testbed.run {shlex.join(self.words)}"


def main(argv: list[str] | None = None) -> int:
    """Run the command line: KEY=VALUE words, which apply to every experiment. Returns testbed.run's exit codes."""
    words = sys.argv[1:] if argv is None else argv
    try:
        parts, out = _parts(words)
    except TestbedError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    lost = []
    for line, part in zip(_announced(parts), parts, strict=True):
        print(line, flush=True)
        begin = time.monotonic()
        code = run_child([sys.executable, "-m", "testbed.run", *part.words], dict(os.environ), lambda pid: pid)
        if code > SIGNALLED:
            print(f"{NAME}: ended in {part.config}; the same command goes on from there", file=sys.stderr)
            return code
        lost += [part] if code else []
        ended = f"ended with exit code {code}" if code else "done"
        print(f"{part.config}: {ended} after {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)
    return _report(parts, lost, out)


def _parts(words: list[str]) -> tuple[list[PaperExperiment], Path]:
    """All experiments, and the folder of the report. Raises ConfigError before any experiment starts."""
    rows = paper_configs().to_dict("records")
    commands = [[f"+experiment={row['config']}", *words] for row in rows]
    configs = [load_config(command) for command in commands]  # all are checked before a folder is created
    preset = configs[0].preset
    minutes = "quick_minutes" if preset else "minutes"
    parts = [
        PaperExperiment(row["config"], row["what"], row[minutes], command, results_folder(config).path)
        for row, command, config in zip(rows, commands, configs, strict=True)
    ]
    return parts, Path(configs[0].results_dir) / NAME / (preset or WHOLE)


def _announced(parts: list[PaperExperiment]) -> Iterator[str]:
    """Print the plan, then yield one line for each experiment."""
    total = sum(part.minutes for part in parts)
    plan = [f"  {part.minutes:>4g} min  {part.command}" for part in parts]
    print("\n".join([f"{len(parts)} experiments, about {_duration(total)} on two cores, less what is done:", *plan]))
    left = total
    for number, part in enumerate(parts, 1):
        about = f"about {_duration(part.minutes)}, {_duration(left)} left"
        yield f"\n[{number}/{len(parts)}] {part.config}: {part.what} ({about})"
        left -= part.minutes


def _duration(minutes: float) -> str:
    return f"{minutes:g} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def _report(parts: list[PaperExperiment], lost: list[PaperExperiment], out: Path) -> int:
    """Write one report of all experiments with rows, and print the comparison with the paper."""
    folders = [part.folder for part in parts if results_file(part.folder)]
    if not folders:
        print(f"error: {NAME}: none of {len(parts)} experiments has a result", file=sys.stderr)
        return FAILED
    shown = report_main([*map(str, folders), "--out", str(out)])
    if shown != BAD_INPUT:
        print_comparison(folders)
    for part in lost:
        print(f"{NAME}: not all of {part.config} could be measured: {part.command}", file=sys.stderr)
    return FAILED if lost or shown else OK


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
