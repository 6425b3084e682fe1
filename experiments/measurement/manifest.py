"""The manifest entry of a run, written while the run proceeds, and a message about points that are completed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from testbed.config.schema import Config
from testbed.errors import ConfigError
from testbed.results.provenance import provenance
from testbed.results.run_folder import RunFolder


class Manifest:
    """The entry of one run, beside those of earlier runs of the folder. Every change is written immediately."""

    def __init__(self, folder: RunFolder, config: Config, facts: Mapping[str, Any] | None = None):
        """facts: further entries of this run."""
        self._folder, self._earlier = folder, folder.runs()
        self._entry: dict[str, Any] = {**provenance(), "config": dataclasses.asdict(config), "started": _now()}
        self._entry |= facts or {}
        self._clusters: list[dict[str, Any]] = []
        self._write()

    def open_cluster(self, facts: dict[str, Any]) -> None:
        """Add a cluster that has started."""
        self._clusters.append(facts)
        self._write()

    def close_cluster(self, facts: dict[str, Any]) -> None:
        """Replace the facts of the last cluster after its points are measured."""
        self._clusters[-1] = facts
        self._write()

    def _write(self) -> None:
        entry = self._entry | {"clusters": self._clusters, "last_written": _now()}
        self._folder.write_manifest([*self._earlier, entry])


def refuse_other_inputs(folder: RunFolder, inputs: str, force: bool) -> None:
    """ConfigError if rows of this folder are of other data or weights, although the configuration names the same.

    inputs: a hash of the content of data and weights. force: raise nothing. Runs that did not record it are not
    compared.
    """
    before = {run["inputs"] for run in folder.runs() if "inputs" in run}
    if not force and folder.parquet.exists() and before - {inputs}:
        allowed = (
            f"{folder.path} was measured with other data or weights ({', '.join(sorted(before))}, now {inputs}); "
            "resume=false measures again and keeps the old rows under another name, force=true continues anyway"
        )
        raise ConfigError("resume", "true", allowed)


HIGHER_STEAL = "; CPU steal was not lower than before, so the earlier rows stay"


def print_completed(folder: RunFolder, config: Config, to_measure: int) -> None:
    """Print which points of an earlier run are not measured again."""
    points = folder.points()
    if not points:
        return
    completed = folder.completed(config.retry_failed, config.retry_degraded)
    failed, finished = (sum(ok == wanted for ok in points.values()) for wanted in (False, True))
    degraded = sum(ok and key not in completed for key, ok in points.items())
    again = "are measured again" if config.retry_failed else "are left as they are (retry_failed=true measures them)"
    others = f"{failed} failed before and {again}; " if failed else ""
    others += f"{degraded} degraded ones are measured again; " if degraded else ""
    print(f"{finished} points are finished already; {others}{to_measure} to measure")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
