"""Faults of the file system: one line that names the file, and what was measured stays."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest
from pyarrow import parquet

from testbed.errors import ConfigError, TestbedError
from testbed.results.atomic_write import writing
from testbed.results.run_folder import RunFolder
from testbed.results.schema import LATENCY
from tests.results.test_run_folder import row


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, "smoke", "abc")


def failing(number: int) -> Any:
    """A function that fails as the kernel does."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_full_device_is_named() -> None:
    message = "^/dev/full cannot be written: No space left on device$"
    with pytest.raises(TestbedError, match=message), writing(Path("/dev/full")):
        Path("/dev/full").write_text("x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_rows_that_cannot_be_written_keep_those_before(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    folder.append([row()])
    folder.write_manifest([{"started": "1"}])
    monkeypatch.setattr(os, call, failing(number))
    kept = f"cannot be written: {os.strerror(number)}; finished points are kept"
    with pytest.raises(TestbedError, match=rf"results\.parquet {kept}$"):
        folder.append([row("tensor")])
    with pytest.raises(TestbedError, match=rf"manifest\.json {kept}$"):
        folder.write_manifest([{"started": "2"}])
    monkeypatch.undo()
    assert folder.rows()["method"].tolist() == ["single"] and folder.runs() == [{"started": "1"}]
    assert sorted(path.name for path in folder.path.iterdir()) == ["manifest.json", "results.csv", "results.parquet"]


def test_a_full_disk_is_found_before_the_first_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Path("/dev/full").open("wb"))  # noqa: SIM115 the caller closes it
    with pytest.raises(
        ConfigError, match="results_dir=.*must be a writable folder.*smoke/abc: No space left on device"
    ):
        RunFolder(tmp_path, "smoke", "abc")


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, why in {
        "dangling": "dangling: links to nowhere, which does not exist",
        "loop": "Too many levels of symbolic links",
        "x" * 300: "File name too long",
        "null\0byte": "embedded null byte",
    }.items():
        with pytest.raises(ConfigError, match=f"results_dir=.*must be a writable folder; .*{why}"):
            RunFolder(tmp_path / name, "smoke", "abc")


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF])  # as some network file systems
def test_a_file_system_without_locks_is_refused(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    message = r"results_dir=.*must be on a file system that can lock a folder"
    with pytest.raises(ConfigError, match=message), folder.exclusive():
        pass


def test_a_folder_that_vanished_is_named(folder: RunFolder) -> None:
    folder.path.rmdir()
    message = "must be a readable folder; .*smoke/abc: No such file or directory"
    with pytest.raises(ConfigError, match=message), folder.exclusive():
        pass


def test_results_that_cannot_be_set_aside_are_named(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.append([row()])
    monkeypatch.setattr(Path, "rename", failing(errno.EACCES))
    with pytest.raises(TestbedError, match=r"smoke/abc cannot be renamed to abc-\S+: Permission denied"):
        folder.set_aside()


def test_files_that_cannot_be_opened_are_not_called_damaged(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.append([row()])
    folder.manifest.mkdir()
    with pytest.raises(TestbedError, match=r"manifest\.json cannot be read: Is a directory"):
        folder.runs()
    monkeypatch.setattr(parquet, "read_table", failing(errno.EMFILE))
    with pytest.raises(TestbedError, match=r"results\.parquet cannot be read: Too many open files"):
        folder.rows()


@pytest.mark.parametrize("runs", [1, [1], [None], {"a": {}}])
def test_entries_of_the_manifest_that_are_none_are_damage(folder: RunFolder, runs: object) -> None:
    folder.manifest.write_text(json.dumps({"runs": runs}))
    with pytest.raises(TestbedError, match=r"manifest\.json is damaged"):
        folder.runs()


def test_results_stay_where_latest_cannot_be_a_link(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.point_to_latest()
    (folder.results_dir / "latest").unlink()
    (folder.results_dir / "latest").mkdir()
    folder.point_to_latest()
    assert (
        f"cannot be made a link to these results: Is a directory; they are in {folder.path}" in capsys.readouterr().err
    )
    monkeypatch.setattr(Path, "symlink_to", failing(errno.EPERM))
    folder.point_to_latest()
    assert "Operation not permitted; they are in" in capsys.readouterr().err
    assert sorted(path.name for path in folder.results_dir.iterdir()) == ["latest", "smoke"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0, None])
def test_a_result_that_is_no_number_is_not_written(folder: RunFolder, value: float | None) -> None:
    with pytest.raises(TestbedError, match=rf"^result of single, .*: latency_ms={value}; allowed: 1e-09 to 1e\+15"):
        folder.append([row(latency_ms=value)])
    with pytest.raises(TestbedError, match="max_abs_err=nan; allowed: any finite number"):
        folder.append([row(max_abs_err=float("nan"))])
    folder.append([row(latency_ms=value, status="failed", error="no result")])
    assert folder.rows()["status"].tolist() == ["failed"] and folder.points() == {LATENCY.key(row()): False}
