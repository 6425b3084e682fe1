from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from testbed.errors import ConfigError, TestbedError
from testbed.results.column import STAMPED
from testbed.results.provenance import provenance
from testbed.results.run_folder import RunFolder
from testbed.results.schema import LATENCY

COLUMNS, point_key = LATENCY.columns, LATENCY.key
EXAMPLE = {"string": "x", "Int64": 1, "Float64": 0.5, "boolean": True}


def row(method: str = "single", bandwidth_mbps: float = 10, **values: Any) -> dict[str, Any]:
    stamped = {column.name for column in STAMPED}
    filled = {name: EXAMPLE[kind] for name, kind in COLUMNS.items() if name not in {*stamped, *LATENCY.derived}}
    return {**filled, "method": method, "bandwidth_mbps": bandwidth_mbps, "status": "ok", "error": None, **values}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, "smoke", "abc")


def test_rows_come_back_with_their_types(folder: RunFolder) -> None:
    assert folder.rows().empty
    folder.append([row(repeat=0), row(repeat=1)])
    folder.append([row("astra", groups=16)])
    frame = RunFolder(folder.results_dir, "smoke", "abc").rows()
    assert list(frame.columns) == list(COLUMNS)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == dict(COLUMNS)
    assert list(frame["repeat"]) == [0, 1, 1]
    assert set(frame["signature"]) == {"abc"} and set(frame["experiment"]) == {"smoke"}
    copy = pd.read_csv(folder.csv)
    assert list(copy.columns) == list(COLUMNS) and len(copy) == 3 and copy["verified"].all()


def test_the_columns_and_their_order() -> None:
    text = """experiment signature attempt kept_because
    method groups optimizations settings codec codebook_size partition devices bandwidth_mbps
    model tokens layers hidden heads topology all_gather queue_kb delay_ms loss_pct
    device_profile compute_mode network time_scale optimizations_resolved full_precision_pct
    repeat warm_up latency_ms compute_ms encode_ms wire_ms wait_ms decode_ms made_up_ms
    exchange_late_ms straggler_wait_pct speedup speedup_fidelity
    payload_bytes formula_bytes messages wire_bytes wire_floor_ms burst_credit_bytes paper_bytes paper_latency_ms
    verified max_abs_err allowed_abs_err overruns foreign_cpu_pct throttled_ms foreign_bytes
    link_rate_error_pct link_burst_bytes retransmits out_of_order steal_pct fidelity fidelity_note residual_pct status
    error"""
    assert list(COLUMNS) == text.split()


def test_wrong_columns_are_refused(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="latency"):
        folder.append([{name: value for name, value in row().items() if name != "latency_ms"}])
    with pytest.raises(ValueError, match="wall_clock"):
        folder.append([row(wall_clock=3)])
    assert folder.rows().empty


def test_only_points_with_all_rows_ok_are_finished(folder: RunFolder) -> None:
    failed = {name: row("tensor")[name] for name in LATENCY.keys}  # nothing was measured
    folder.append([row(repeat=0), row(repeat=1)])
    folder.append([{**failed, "status": "failed", "error": "rank 1 is gone"}])
    assert folder.points() == {point_key(row()): True, point_key(row("tensor")): False}
    assert folder.completed(retry_failed=True) == {point_key(row())}
    assert folder.completed(retry_failed=False) == {point_key(row()), point_key(row("tensor"))}
    folder.append([row("tensor")])  # a later run repairs it
    assert folder.completed(retry_failed=True) == {point_key(row()), point_key(row("tensor"))}
    assert set(folder.rows()["status"]) == {"ok"} and len(folder.rows()) == 3
    assert folder.rows(every_attempt=True)["status"].tolist() == ["ok", "ok", "failed", "ok"]


def test_speedup_is_against_the_median_of_single_at_the_same_bandwidth(folder: RunFolder) -> None:
    folder.append([row("astra", latency_ms=50.0, devices=4)])
    assert folder.rows()["speedup"].isna().all()
    folder.append([row(latency_ms=value) for value in (90.0, 100.0, 500.0)])
    folder.append([row(latency_ms=300.0, bandwidth_mbps=20)])
    folder.append([row("astra", latency_ms=50.0, devices=4, bandwidth_mbps=20)])
    folder.append([row("astra", latency_ms=50.0, devices=4, bandwidth_mbps=20, compute_mode="hold")])
    frame = folder.rows()
    assert list(frame[frame["method"] == "astra"]["speedup"].fillna(-1)) == [2.0, 6.0, -1.0]
    assert frame[frame["method"] == "single"]["speedup"].iloc[1] == 1.0


def test_a_crash_while_writing_leaves_the_old_rows(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.append([row()])

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        folder.append([row("tensor")])
    monkeypatch.undo()
    again = RunFolder(folder.results_dir, "smoke", "abc")
    assert list(again.rows()["method"]) == ["single"]
    again.append([row("tensor")])
    assert len(again.rows()) == len(pd.read_csv(again.csv)) == 2
    assert sorted(path.name for path in again.path.iterdir()) == ["results.csv", "results.parquet"]


def test_a_truncated_file_is_named(folder: RunFolder) -> None:
    folder.append([row()])
    folder.parquet.write_bytes(folder.parquet.read_bytes()[:-100])
    with pytest.raises(TestbedError, match=r"results\.parquet is damaged"):
        folder.points()


def test_the_parquet_file_is_the_truth(folder: RunFolder) -> None:
    folder.append([row()])
    folder.csv.write_text("half a li")
    assert len(folder.rows()) == 1
    folder.append([row("tensor")])
    assert len(pd.read_csv(folder.csv)) == 2


def test_starting_afresh_loses_nothing(folder: RunFolder) -> None:
    assert folder.set_aside() is None
    folder.append([row()])
    aside = folder.set_aside()
    assert aside is not None and aside.name.startswith("abc-") and (aside / "results.parquet").exists()
    assert folder.path.is_dir() and folder.rows().empty


def test_two_runs_never_share_a_folder(folder: RunFolder) -> None:
    other = RunFolder(folder.results_dir, "smoke", "abc")
    with folder.exclusive(), pytest.raises(TestbedError, match="another run"), other.exclusive():
        pass
    with other.exclusive():
        pass


def test_latest_is_a_relative_link_to_the_last_run(folder: RunFolder, tmp_path: Path) -> None:
    folder.point_to_latest()
    RunFolder(tmp_path, "smoke", "def").point_to_latest()
    assert os.readlink(tmp_path / "latest") == "smoke/def"
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    shutil.move(tmp_path, moved)
    assert (moved / "latest").resolve() == (moved / "smoke" / "def").resolve()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"results_dir=.*file.*Not a directory"):
        RunFolder(tmp_path / "file", "smoke", "abc")


@pytest.mark.parametrize("text", ["", "[]", '{"runs"', "{}", "[" * 100_000])
def test_a_damaged_manifest_is_named(folder: RunFolder, text: str) -> None:
    assert folder.runs() == []
    folder.manifest.write_text(text)
    with pytest.raises(TestbedError, match=r"manifest\.json is damaged"):
        folder.runs()


def test_the_manifest_says_how_it_was_made(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush-hush")
    folder.write_manifest([provenance()])
    text = folder.manifest.read_text()
    (made,) = folder.runs()
    assert made["packages"]["torch"] and made["kernel"] and made["cores"] >= 1 and "git_sha" in made
    assert "hush-hush" not in text and os.uname().nodename not in text.replace(made["cpu"], "")
