"""Rows on disk: one per (point, repeat), in Parquet (the truth) and CSV (a copy), with a manifest beside them.

Files are replaced whole, never written in place: whatever ends a run, a file holds all rows of a point or none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import ConfigError, TestbedError

if TYPE_CHECKING:
    from pandas import DataFrame

BASELINE = "single"  # the method that speed-up is against; it runs on one device whatever ``devices`` is

_TEXT, _COUNT, _NUMBER, _FLAG = "string", "Int64", "Float64", "boolean"  # pandas types with missing values
COLUMNS: dict[str, str] = {
    "experiment": _TEXT,
    "signature": _TEXT,
    "method": _TEXT,
    "codec": _TEXT,
    "groups": _COUNT,
    "codebook_size": _COUNT,
    "devices": _COUNT,
    "bandwidth_mbps": _NUMBER,
    "delay_ms": _NUMBER,
    "loss_pct": _NUMBER,
    "tokens": _COUNT,
    "layers": _COUNT,
    "hidden": _COUNT,
    "heads": _COUNT,
    "model": _TEXT,
    "topology": _TEXT,
    "network": _TEXT,
    "device_profile": _TEXT,
    "compute_mode": _TEXT,
    "time_scale": _NUMBER,
    "repeat": _COUNT,
    "latency_ms": _NUMBER,
    "compute_ms": _NUMBER,
    "encode_ms": _NUMBER,
    "wire_ms": _NUMBER,
    "wait_ms": _NUMBER,
    "decode_ms": _NUMBER,
    "speedup": _NUMBER,
    "payload_bytes": _COUNT,
    "formula_bytes": _COUNT,
    "wire_bytes": _COUNT,
    "wire_floor_ms": _NUMBER,
    "verified": _FLAG,
    "max_abs_err": _NUMBER,
    "overruns": _COUNT,
    "fidelity": _TEXT,
    "fidelity_note": _TEXT,
    "residual_pct": _NUMBER,
    "status": _TEXT,
    "error": _TEXT,
}
KEY_COLUMNS = ("method", "groups", "codebook_size", "codec", "devices", "bandwidth_mbps", "tokens")
FILLED_HERE = ("experiment", "signature", "speedup")
SAME_CONDITIONS = ["bandwidth_mbps", "tokens", "compute_mode"]  # of the two sides of a speed-up
PACKAGES = ["torch", "numpy", "ray", "pandas", "pyarrow", "hydra-core", "omegaconf", "mininet"]


def point_key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    """What identifies a point within a folder: the row's KEY_COLUMNS."""
    return tuple(row[column] for column in KEY_COLUMNS)


def short_hash(value: object) -> str:
    """Ten hexadecimal digits that depend only on the value, which must be JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


class RunFolder:
    """results_dir/experiment/signature/ with results.parquet, results.csv, manifest.json.

    Raises ConfigError (key results_dir) if the folder cannot be made or written to.
    """

    def __init__(self, results_dir: str | Path, experiment: str, signature: str):
        self.results_dir, self.experiment, self.signature = Path(results_dir), experiment, signature
        self.path = self.results_dir / experiment / signature
        self.parquet, self.csv = self.path / "results.parquet", self.path / "results.csv"
        self._make()

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            allowed = f"must be a folder that can be written to; {self.path}: {error.strerror}"
            raise ConfigError("results_dir", self.results_dir, allowed) from None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other runs out of this folder meanwhile. Raises TestbedError if one is at work in it."""
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
        """Move results to a name with the time, so that nothing finished is lost. Returns it; None without results."""
        if not self.parquet.exists():
            return None
        aside = self.path.with_name(f"{self.signature}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        self.path.rename(aside)
        self._make()
        return aside

    def rows(self) -> DataFrame:
        """All rows with the types of COLUMNS. Raises TestbedError naming the file if it is damaged."""
        import pandas as pd
        from pyarrow import parquet

        if not self.parquet.exists():
            return pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
        try:
            table = parquet.read_table(self.parquet, page_checksum_verification=True)
            table.validate(full=True)  # else text that is not UTF-8 shows much later
            return table.to_pandas().loc[:, list(COLUMNS)].astype(COLUMNS)
        except Exception as error:  # pyarrow raises several kinds, OSError and KeyError among them
            reason = str(error).partition("\n")[0]
            message = f"{self.parquet} is damaged or of another version ({reason}); move it away, or use resume=false"
            raise TestbedError(message) from None

    def finished(self) -> set[tuple[Any, ...]]:
        """Keys (``point_key``) of the points that have rows, all with status ok."""
        keys_ok: dict[tuple[Any, ...], bool] = {}
        for row in self.rows().loc[:, [*KEY_COLUMNS, "status"]].to_dict(orient="records"):
            keys_ok[point_key(row)] = keys_ok.get(point_key(row), True) and row["status"] == "ok"
        return {key for key, ok in keys_ok.items() if ok}

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add all rows of a point at once, in place of its rows that are not ok; recompute all speed-ups.

        Each row has all COLUMNS but FILLED_HERE; one that is not ok may lack what was not measured. Else ValueError.
        """
        import pandas as pd

        for row in rows:
            needed = set(COLUMNS) - set(FILLED_HERE) if row.get("status") == "ok" else {*KEY_COLUMNS, "status", "error"}
            if wrong := (needed - set(row)) | (set(row) - set(COLUMNS)):
                raise ValueError(f"row of {row.get('method')}: columns missing or unknown: {sorted(wrong)}")
        added = [{**row, "experiment": self.experiment, "signature": self.signature} for row in rows]
        keys = {point_key(row) for row in rows}
        before = self.rows()
        records = before.to_dict(orient="records")
        replaced = pd.Series([row["status"] != "ok" and point_key(row) in keys for row in records], dtype=bool)
        new = pd.DataFrame(added, columns=list(COLUMNS)).astype(COLUMNS)
        self._write(with_speedup(pd.concat([before.loc[~replaced], new], ignore_index=True)))

    def degrade(self, reasons: Mapping[tuple[Any, ...], str]) -> None:
        """Mark points (``point_key`` -> reason) whose links turned out wrong after they were measured."""
        frame = self.rows()
        for index, row in enumerate(frame.to_dict(orient="records")):
            if row["status"] == "ok" and (reason := reasons.get(point_key(row))):
                notes = [note for note in (row["fidelity_note"], reason) if note]
                frame.loc[index, ["fidelity", "fidelity_note"]] = ["degraded", "; ".join(notes)]
        self._write(frame)

    def _write(self, frame: DataFrame) -> None:
        _replace(self.parquet, lambda path: frame.to_parquet(path, index=False, write_page_checksum=True))
        _replace(self.csv, lambda path: frame.to_csv(path, index=False))

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """manifest.json, replaced whole."""
        text = json.dumps(manifest, indent=2, sort_keys=True, default=str) + "\n"
        _replace(self.path / "manifest.json", lambda path: path.write_text(text))

    def point_to_latest(self) -> None:
        """Make results_dir/latest a relative link to this folder."""
        link = self.results_dir / "latest"
        temporary = self.results_dir / f".latest-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(self.path, self.results_dir))
        os.replace(temporary, link)


def with_speedup(frame: DataFrame) -> DataFrame:
    """The rows with ``speedup``: the baseline's median latency under SAME_CONDITIONS, divided by the row's latency."""
    ok = frame["status"] == "ok"
    baseline = frame.loc[ok & (frame["method"] == BASELINE)].groupby(SAME_CONDITIONS)[["latency_ms"]].median()
    of_row = frame.loc[:, SAME_CONDITIONS].merge(baseline, how="left", left_on=SAME_CONDITIONS, right_index=True)
    speedup = (of_row["latency_ms"] / frame["latency_ms"]).where(ok)
    return frame.assign(speedup=speedup.astype("Float64"))


def provenance() -> dict[str, Any]:
    """What this run was made with: code, packages, machine and command line. Nothing that identifies user or host."""
    return {
        "git_sha": _git("rev-parse", "HEAD").strip() or None,
        "git_dirty_hash": _dirty_hash(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "argv": sys.argv[1:],
    }


def _replace(target: Path, write: Callable[[Path], Any]) -> None:
    """``write(path)`` to a temporary file beside ``target``, then put it in target's place once it is safe on disk."""
    temporary = target.with_name(f".{target.name}.part")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, target)


def _git(*arguments: str) -> str:
    """Output of git in the source tree; empty without git or a repository."""
    try:
        folder = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def _dirty_hash() -> str | None:
    """Hash of what differs from the commit, new source files included; None if nothing does."""
    top = Path(_git("rev-parse", "--show-toplevel").strip())
    new = _git("ls-files", "--others", "--exclude-standard", "--full-name", ":/*.py", ":/*.yaml").splitlines()
    contents = {name: hashlib.sha256((top / name).read_bytes()).hexdigest() for name in new}
    diff = _git("diff", "HEAD")
    return short_hash([diff, contents]) if diff or contents else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
