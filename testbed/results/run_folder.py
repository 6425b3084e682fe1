"""The folder of a run: its rows in results.parquet, a copy in results.csv, and a manifest.

There is one row for each repeat of each attempt at a point.
No row is dropped: ``testbed.results.attempts`` says which attempt at a point is kept. Files are replaced atomically.
However a run ends, a file holds all rows of an attempt or none. If both files of rows differ, results.parquet is right.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import ConfigError, TestbedError, printable, reason
from testbed.results.atomic_write import replacing
from testbed.results.attempts import kept, with_reasons
from testbed.results.schema import LATENCY, RowSchema

if TYPE_CHECKING:
    from pandas import DataFrame

ROOM_BYTES = 1 << 16  # a results folder has room for at least this much, so that a run does not begin on a full disk


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
        self._appended: set[tuple[Hashable, ...]] = set()  # attempts that this object has written
        self._make()

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(bytes(ROOM_BYTES))
                file.flush()
        except OSError as error:
            raise self._unusable("must be a writable folder", error) from None
        except ValueError as error:  # a null byte in the path
            raise ConfigError("results_dir", self.results_dir, f"must be a writable folder; {error}") from None

    def _unusable(self, allowed: str, error: OSError) -> ConfigError:
        named = Path(error.filename) if isinstance(error.filename, str) else self.path
        named = self.path if named.parent == self.path else named  # not the name of a temporary file
        dangling = os.path.islink(named) and not os.path.exists(named)
        cause = f"links to {os.readlink(named)}, which does not exist" if dangling else reason(error)
        return ConfigError("results_dir", self.results_dir, f"{allowed}; {named}: {cause}")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the folder during the block.

        Raises TestbedError if another run has locked it, and ConfigError if its file system has no locks.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise self._unusable("must be a readable folder", error) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TestbedError(f"another run of the same experiment is writing to {self.path}") from None
            except OSError as error:
                allowed = "must be on a file system that can lock a folder (flock), as disks of this machine do"
                raise self._unusable(allowed, error) from None
            yield
        finally:
            os.close(descriptor)

    def set_aside(self) -> Path | None:
        """Rename the folder to a name with the current time. Returns the new path, or None if there are no results."""
        if not self.parquet.exists():
            return None
        aside = self.path.with_name(f"{self.signature}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        try:
            self.path.rename(aside)
        except OSError as error:
            raise TestbedError(f"{self.path} cannot be renamed to {aside.name}: {reason(error)}") from None
        self._make()
        return aside

    def rows(self, every_attempt: bool = False) -> DataFrame:
        """The rows of kept attempts, with the types of the schema. every_attempt: those of all others too.

        Raises TestbedError with the name of the file if it cannot be read or is damaged.
        """
        import pandas as pd
        from pyarrow import parquet

        columns = dict(self.schema.columns)
        if not self.parquet.exists():
            return pd.DataFrame(columns=list(columns)).astype(columns)
        try:
            table = parquet.read_table(self.parquet, page_checksum_verification=True)
            table.validate(full=True)  # otherwise text that is not UTF-8 would be found much later
            found = table.to_pandas().loc[:, list(columns)].astype(columns)
        except Exception as error:  # pyarrow raises several kinds, for example KeyError, and OSError without a number
            if isinstance(error, OSError) and error.errno:
                raise TestbedError(f"{self.parquet} cannot be read: {reason(error)}") from None
            cause = str(error).partition("\n")[0]
            message = f"{self.parquet} is damaged or of another version ({cause}); move it away, or use resume=false"
            raise TestbedError(message) from None
        return found if every_attempt else found[kept(found)].reset_index(drop=True)

    def points(self) -> dict[tuple[Any, ...], bool]:
        """For each point that has rows: its key (``schema.key``) -> whether all of its kept rows have status ok."""
        ok: dict[tuple[Any, ...], bool] = {}
        for row in self.rows().loc[:, [*self.schema.keys, "status"]].to_dict(orient="records"):
            key = self.schema.key(row)
            ok[key] = ok.get(key, True) and row["status"] == "ok"
        return ok

    def completed(self, retry_failed: bool, retry_degraded: bool = False) -> set[tuple[Any, ...]]:
        """Keys of the points that need not be measured again.

        retry_degraded: measure points with degraded kept rows again. The new attempt is kept only if it has less stolen
        CPU time.
        """
        completed = {key for key, ok in self.points().items() if ok or not retry_failed}
        if retry_degraded:
            rows = self.rows()
            completed -= set(map(self.schema.key, rows[rows["fidelity"] == "degraded"].to_dict(orient="records")))
        return completed

    def append(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add attempts at points, after all earlier ones. Returns those of these rows that are kept.

        rows: may have ``attempt``, which counts from 0 within these rows; without it they are one attempt.
        Raises ValueError and TestbedError as ``RowSchema.check`` does, and TestbedError if they cannot be written.
        """
        import pandas as pd

        columns = dict(self.schema.columns)
        for row in rows:
            self.schema.check({name: value for name, value in row.items() if name != "attempt"})
        stamped = {"experiment": self.experiment, "signature": self.signature}
        # No file of rows can hold every text: a carriage return ends a line of CSV, and surrogates are no UTF-8.
        cells = [
            {"attempt": 0} | {name: printable(v) if isinstance(v, str) else v for name, v in row.items()} | stamped
            for row in rows
        ]
        before = self.rows(every_attempt=True)
        frame = pd.concat([before, pd.DataFrame(cells, columns=list(columns)).astype(columns)], ignore_index=True)
        tried = self._tried(frame)
        made: dict[tuple[Hashable, ...], int] = {}  # what is tried -> number of earlier attempts
        for point, number in zip(tried, before["attempt"], strict=False):
            made[point] = max(made.get(point, 0), int(number) + 1)
        frame["attempt"] += [0] * len(before) + [made.get(point, 0) for point in tried[len(before) :]]
        frame = self.schema.derive(with_reasons(frame, tried))
        self._write(frame)
        self._appended |= set(self._attempts(frame)[len(before) :])
        return [row for row, stays in zip(rows, kept(frame)[len(before) :], strict=True) if stays]

    def _tried(self, frame: DataFrame) -> list[tuple[Hashable, ...]]:
        """What each row is an attempt at: a point, in one compute mode.

        A point that failed early may lack a mode. It was tried in the first mode that another row of the point has.
        """
        points = list(frame[list(self.schema.keys)].itertuples(index=False, name=None))
        if "compute_mode" not in self.schema.columns:
            return points
        modes = frame["compute_mode"].fillna("").tolist()
        first: dict[tuple[Hashable, ...], str] = {}
        for point, mode in zip(points, modes, strict=True):
            first[point] = first.get(point) or mode
        return [(*point, mode or first[point]) for point, mode in zip(points, modes, strict=True)]

    def _attempts(self, frame: DataFrame) -> list[tuple[Hashable, ...]]:
        """What each row is an attempt at, and the number of the attempt."""
        return [(*point, int(number)) for point, number in zip(self._tried(frame), frame["attempt"], strict=True)]

    def degrade(self, reasons: Mapping[tuple[Any, ...], str]) -> None:
        """Mark the finished rows of points as degraded. reasons: key of a point -> the text for ``fidelity_note``.

        Only attempts that this object has appended are marked, because a reason says nothing of an earlier run.
        """
        frame = self.rows(every_attempt=True)
        attempts = self._attempts(frame)
        for index, row in enumerate(frame.to_dict(orient="records")):
            reason = reasons.get(self.schema.key(row)) if attempts[index] in self._appended else None
            if row["status"] == "ok" and reason:
                notes = [note for note in (row["fidelity_note"], reason) if note]
                frame.loc[index, ["fidelity", "fidelity_note"]] = ["degraded", "; ".join(notes)]
        self._write(self.schema.derive(frame))

    def _write(self, frame: DataFrame) -> None:
        _replace(self.parquet, lambda path: frame.to_parquet(path, index=False, write_page_checksum=True))
        _replace(self.csv, lambda path: frame.to_csv(path, index=False))

    def runs(self) -> list[dict[str, Any]]:
        """The entries of manifest.json, one for each command that measured rows of this folder.

        Raises TestbedError with the name of the file if it cannot be read or is damaged.
        """
        try:
            runs = json.loads(self.manifest.read_text("utf-8"))["runs"]
            if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
                raise TypeError("entries of runs must be objects")
            return runs
        except FileNotFoundError:
            return []
        except OSError as error:
            raise TestbedError(f"{self.manifest} cannot be read: {reason(error)}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TestbedError(
                f"{self.manifest} is damaged ({type(error).__name__}); move it away, or use resume=false"
            ) from None

    def write_manifest(self, runs: list[dict[str, Any]]) -> None:
        """Replace manifest.json. Raises TestbedError if it cannot be written."""
        text = json.dumps({"runs": runs}, indent=2, sort_keys=True, default=str) + "\n"
        _replace(self.manifest, lambda path: path.write_text(text, "utf-8"))

    def point_to_latest(self) -> None:
        """Make results_dir/latest a relative symbolic link to this folder, or print why it cannot be made."""
        link = self.results_dir / "latest"
        temporary = self.results_dir / f".latest-{os.getpid()}"
        try:
            try:
                temporary.unlink(missing_ok=True)
                temporary.symlink_to(os.path.relpath(self.path, self.results_dir))
                os.replace(temporary, link)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:  # the results are whole without it
            why = f"cannot be made a link to these results: {reason(error)}"
            print(f"WARNING: {link} {why}; they are in {self.path}", file=sys.stderr)


def _replace(target: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(path)`` and replace ``target`` by that file. Raises TestbedError if it cannot be written."""
    try:
        with replacing(target) as path:
            write(path)
    except TestbedError as error:
        raise TestbedError(f"{error}; finished points are kept") from None
