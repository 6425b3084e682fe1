"""What runners keep of their runs: an entry in manifest.json, written as the run goes on, and what is done already."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from testbed.config.schema import Config
from testbed.results.provenance import provenance
from testbed.results.run_folder import RunFolder


class Manifest:
    """An entry beside those of the folder's earlier runs; written at once."""

    def __init__(self, folder: RunFolder, config: Config):
        self._folder, self._earlier = folder, folder.runs()
        self._entry: dict[str, Any] = {**provenance(), "config": dataclasses.asdict(config), "started": _now()}
        self._clusters: list[dict[str, Any]] = []
        self._write()

    def open_cluster(self, facts: dict[str, Any]) -> None:
        """A cluster is up; its points follow."""
        self._clusters.append(facts)
        self._write()

    def close_cluster(self, facts: dict[str, Any]) -> None:
        """The last cluster's points are measured; ``facts`` replace what was known of it before."""
        self._clusters[-1] = facts
        self._write()

    def _write(self) -> None:
        entry = self._entry | {"clusters": self._clusters, "last_written": _now()}
        self._folder.write_manifest([*self._earlier, entry])


HIGHER_STEAL = "; not calmer than before, so the earlier rows stay"


def print_completed(folder: RunFolder, config: Config, to_measure: int) -> None:
    """Say what of an earlier run is not measured again."""
    points = folder.points()
    if not points:
        return
    completed = folder.completed(config.retry_failed, config.retry_degraded)
    failed, finished = (sum(ok == wanted for ok in points.values()) for wanted in (False, True))
    degraded = sum(ok and key not in completed for key, ok in points.items())
    again = "are measured again" if config.retry_failed else "are left as they are (retry_failed=true measures them)"
    lost = f"{failed} failed before and {again}; " if failed else ""
    lost += f"{degraded} degraded ones are measured again; " if degraded else ""
    print(f"{finished} points are finished already; {lost}{to_measure} to measure")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
