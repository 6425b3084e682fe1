"""The manifest entry of a run, written while the run proceeds, and a message about points that are completed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from testbed.config.schema import Config
from testbed.results.measurement_hash import measurement_hash
from testbed.results.provenance import provenance
from testbed.results.run_folder import RunFolder


class Manifest:
    """The entry of one run, beside those of earlier runs of the folder. Every change is written immediately."""

    def __init__(self, folder: RunFolder, config: Config, facts: Mapping[str, Any] | None = None):
        """facts: further entries of this run."""
        self._folder, self._earlier = folder, folder.runs()
        settings = dataclasses.asdict(config)
        self._entry: dict[str, Any] = {**provenance(), "measurement_hash": measurement_hash(settings)}
        self._entry |= {"config": settings, "started": _now(), **(facts or {})}
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


STAYS = "; an earlier attempt had no more stolen CPU time, so it counts and this one does not"


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
