"""The folder of a run: one row for each point and repeat in results.parquet, a copy in results.csv, and a manifest.

Files are replaced atomically. However a run ends, a file holds all rows of a point or none. If both files of rows
differ, results.parquet is right.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import ConfigError, TestbedError
from testbed.results.atomic_write import replacing
from testbed.results.schema import LATENCY, STEAL_LIMIT_PCT, RowSchema

if TYPE_CHECKING:
    from pandas import DataFrame, Series


class RunFolder:
    """The folder results_dir/experiment/signature/ with results.parquet, results.csv and manifest.json.

    Raises ConfigError (key results_dir) if the folder cannot be created or written to.
    """

    def __init__(self, results_dir: str | Path, experiment: str, signature: str, schema: RowSchema = LATENCY):
        self.results_dir, self.experiment, self.signature = Path(results_dir), experiment, signature
        self.schema = schema
        self.path = self.results_dir / experiment / signature
        self.parquet, self.csv = self.path / "results.parquet", self.path / "results.csv"
        self.manifest = self.path / "manifest.json"
        self._make()

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            allowed = f"must be a writable folder; {self.path}: {error.strerror}"
            raise ConfigError("results_dir", self.results_dir, allowed) from None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the folder during the block. Raises TestbedError if another run has locked it."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TestbedError(f"another run of the same experiment is writing to {self.path}") from None
            yield
        finally:
            os.close(descriptor)

    def set_aside(self) -> Path | None:
        """Rename the folder to a name with the current time. Returns the new path, or None if there are no results."""
        if not self.parquet.exists():
            return None
        aside = self.path.with_name(f"{self.signature}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        self.path.rename(aside)
        self._make()
        return aside

    def rows(self) -> DataFrame:
        """All rows, with the types of the schema. Raises TestbedError with the name of the file if it is damaged."""
        import pandas as pd
        from pyarrow import parquet

        columns = dict(self.schema.columns)
        if not self.parquet.exists():
            return pd.DataFrame(columns=list(columns)).astype(columns)
        try:
            table = parquet.read_table(self.parquet, page_checksum_verification=True)
            table.validate(full=True)  # otherwise text that is not UTF-8 would be found much later
            return table.to_pandas().loc[:, list(columns)].astype(columns)
        except Exception as error:  # pyarrow raises several kinds, for example OSError and KeyError
            reason = str(error).partition("\n")[0]
            message = f"{self.parquet} is damaged or of another version ({reason}); move it away, or use resume=false"
            raise TestbedError(message) from None

    def points(self) -> dict[tuple[Any, ...], bool]:
        """For each point that has rows: its key (``schema.key``) -> whether all of its rows have status ok."""
        ok: dict[tuple[Any, ...], bool] = {}
        for row in self.rows().loc[:, [*self.schema.keys, "status"]].to_dict(orient="records"):
            key = self.schema.key(row)
            ok[key] = ok.get(key, True) and row["status"] == "ok"
        return ok

    def completed(self, retry_failed: bool, retry_degraded: bool = False) -> set[tuple[Any, ...]]:
        """Keys of the points that need not be measured again."""
        completed = {key for key, ok in self.points().items() if ok or not retry_failed}
        if retry_degraded:
            rows = self.rows()
            completed -= set(map(self.schema.key, rows[rows["fidelity"] == "degraded"].to_dict(orient="records")))
        return completed

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add the rows of points. They replace earlier rows of these points with a status other than ok.

        Raises ValueError for wrong columns.
        """
        before = self.rows()
        self._put(before[~(self._of_points(before, rows) & (before["status"] != "ok"))], rows)

    def append_lower_steal(self, rows: list[dict[str, Any]]) -> bool:
        """Add the rows of a point, as ``append`` does. Returns whether they were added.

        If the point already has rows that are all ok, the new rows replace them only if they are all ok too and their
        CPU steal time is not higher, or at most STEAL_LIMIT_PCT. Measured latencies play no part.
        """
        before = self.rows()
        earlier = self._of_points(before, rows)
        ok = before["status"] == "ok"
        finished = earlier.any() and ok[earlier].all()
        if finished:
            steal_pct = max(row.get("steal_pct") or 0.0 for row in rows)
            if any(row["status"] != "ok" for row in rows) or steal_pct > max(
                STEAL_LIMIT_PCT, before.loc[earlier, "steal_pct"].max()
            ):
                return False
        self._put(before[~(earlier if finished else earlier & ~ok)], rows)
        return True

    def _put(self, before: DataFrame, rows: list[dict[str, Any]]) -> None:
        """Check these rows and write them after the earlier ones."""
        import pandas as pd

        for row in rows:
            self.schema.check(row)
        columns = dict(self.schema.columns)
        added = [{**row, "experiment": self.experiment, "signature": self.signature} for row in rows]
        new = pd.DataFrame(added, columns=list(columns)).astype(columns)
        self._write(self.schema.derive(pd.concat([before, new], ignore_index=True)))

    def _of_points(self, frame: DataFrame, rows: list[dict[str, Any]]) -> Series[bool]:
        """For each row of the frame: whether it belongs to a point of ``rows``."""
        import pandas as pd

        keys = set(map(self.schema.key, rows))
        return pd.Series([self.schema.key(row) in keys for row in frame.to_dict(orient="records")], dtype=bool)

    def degrade(self, reasons: Mapping[tuple[Any, ...], str]) -> None:
        """Mark the finished rows of points as degraded. reasons: key of a point -> the text for ``fidelity_note``."""
        frame = self.rows()
        for index, row in enumerate(frame.to_dict(orient="records")):
            if row["status"] == "ok" and (reason := reasons.get(self.schema.key(row))):
                notes = [note for note in (row["fidelity_note"], reason) if note]
                frame.loc[index, ["fidelity", "fidelity_note"]] = ["degraded", "; ".join(notes)]
        self._write(frame)

    def _write(self, frame: DataFrame) -> None:
        _replace(self.parquet, lambda path: frame.to_parquet(path, index=False, write_page_checksum=True))
        _replace(self.csv, lambda path: frame.to_csv(path, index=False))

    def runs(self) -> list[dict[str, Any]]:
        """The entries of manifest.json, one for each command that measured rows of this folder.

        Raises TestbedError with the name of the file if it is damaged.
        """
        try:
            return json.loads(self.manifest.read_text())["runs"] if self.manifest.exists() else []
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TestbedError(
                f"{self.manifest} is damaged ({type(error).__name__}); move it away, or use resume=false"
            ) from None

    def write_manifest(self, runs: list[dict[str, Any]]) -> None:
        """Replace manifest.json."""
        text = json.dumps({"runs": runs}, indent=2, sort_keys=True, default=str) + "\n"
        _replace(self.manifest, lambda path: path.write_text(text))

    def point_to_latest(self) -> None:
        """Make results_dir/latest a relative symbolic link to this folder."""
        link = self.results_dir / "latest"
        temporary = self.results_dir / f".latest-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(self.path, self.results_dir))
        os.replace(temporary, link)


def _replace(target: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(path)`` and replace ``target`` by that file. Raises TestbedError if it cannot be written."""
    try:
        with replacing(target) as path:
            write(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TestbedError(f"{target} cannot be written: {reason}; finished points are kept") from None
