from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments import measured
from testbed.config.load import load_config
from testbed.errors import ConfigError
from testbed.grid import config_signature
from testbed.results.kept_runs import KeptRun, earlier_revision
from testbed.results.measurement_hash import measurement_hash
from testbed.results.run_folder import RunFolder
from tests.results.test_run_folder import row

Do = Callable[..., tuple[int, list[list[str]]]]


@pytest.fixture
def do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Do:
    """Runs the command with two kept runs. ``codes``: what their commands end with, in turn."""
    results = tmp_path / "results"
    runs = {
        name: KeptRun(name, "latency", str(tmp_path / "kept" / name), (*words, f"results_dir={results}"), minutes)
        for name, minutes, words in (
            ("first", 2.0, ("+experiment=smoke", "network=loopback")),
            ("second", 90.0, ("+experiment=smoke", "network=loopback", "seed=3")),
        )
    }
    monkeypatch.setattr(measured, "kept_runs", lambda: runs)

    def go(
        *names: str, codes: tuple[int, ...] = (0, 0), entry: dict[str, Any] | None = None
    ) -> tuple[int, list[list[str]]]:
        started: list[list[str]] = []
        left = list(codes)

        def child(command: list[str], environment: dict[str, str], started_as: Callable[[int], Any]) -> int:
            started.append(command[2:])
            if command[2] != "testbed.run":
                return 0
            code = left.pop(0)
            config = load_config(command[3:])
            folder = RunFolder(results, "smoke", config_signature(config))
            if "resume=false" in command:
                folder.set_aside()
                folder = RunFolder(results, "smoke", config_signature(config))
            if not folder.rows().empty:
                return code
            folder.append([row()])
            settings = dataclasses.asdict(config)
            made = {"measurement_hash": measurement_hash(settings), "config": settings, "argv": command[3:]}
            folder.write_manifest([{**made, **(entry or {}), "note": f"{Path.home()}/x"}])
            return code

        monkeypatch.setattr(measured, "run_child", child)
        return measured.main(names), started

    return go


def test_all_runs_are_measured_kept_and_written(do: Do, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, started = do()
    printed = capsys.readouterr().out
    assert code == 0 and [words[0] for words in started] == ["testbed.run", "testbed.run", "analysis.claims"]
    assert printed.startswith("2 runs, about 92 minutes on two cores; 0 runs are of today's code already\n")
    assert printed.index("  90 min,   90 left") > printed.index("   2 min,   92 left")
    for name in ("first", "second"):
        kept = tmp_path / "kept" / name
        assert len(pd.read_csv(kept / "results.csv")) == 1 and not (kept / "results.parquet").exists()
        assert earlier_revision(kept) == ""
        text = (kept / "manifest.json").read_text()
        assert str(tmp_path) not in text and str(Path.home()) not in text and '"~/x"' in text
        (entry,) = json.loads(text)["runs"]
        assert entry["config"]["results_dir"] == "results" and "results_dir=results" in entry["argv"]
    code, started = do()
    assert code == 0 and [words[0] for words in started] == ["analysis.claims"]
    assert capsys.readouterr().out.startswith("0 runs, about 0 minutes on two cores; 2 runs are of today's code")


def test_one_run_by_its_name(do: Do, tmp_path: Path) -> None:
    code, started = do("second")
    assert code == 0 and "seed=3" in started[0] and len(started) == 2
    assert not (tmp_path / "kept" / "first").exists()
    with pytest.raises(ConfigError, match="ARGS=secnd: unknown; did you mean second?"):
        do("secnd")


def test_a_run_with_failed_points_is_not_kept(do: Do, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, started = do(codes=(1, 0))
    assert code == 1 and len(started) == 3
    assert not (tmp_path / "kept" / "first").exists() and (tmp_path / "kept" / "second").exists()
    assert "not all points of first could be measured" in capsys.readouterr().err


def test_an_interrupted_run_goes_on(do: Do, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, started = do(codes=(130,))
    assert code == 130 and len(started) == 1 and not (tmp_path / "kept").exists()
    assert "the same command goes on from there" in capsys.readouterr().err
    code, started = do()
    assert code == 0 and "resume=false" not in started[0]


def test_rows_of_other_code_are_measured_again(do: Do, tmp_path: Path) -> None:
    do(entry={"measurement_hash": "0123456789"})
    assert earlier_revision(tmp_path / "kept" / "first") != ""
    code, started = do()
    assert code == 0 and [words[-1] for words in started[:2]] == ["resume=false"] * 2
    assert [words[0] for words in do()[1]] == ["analysis.claims"]
    assert earlier_revision(tmp_path / "kept" / "first") == ""


def test_other_settings_are_measured_again(do: Do, tmp_path: Path) -> None:
    do()
    path = tmp_path / "kept" / "first" / "results.csv"
    pd.read_csv(path, dtype=str).assign(signature="0123456789").to_csv(path, index=False)
    assert len(do()[1]) == 2


def test_a_kept_parquet_file_stays_one(do: Do, tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "first"
    kept.mkdir(parents=True)
    (kept / "results.parquet").write_bytes(b"damaged")
    do("first")
    assert len(pd.read_parquet(kept / "results.parquet")) == 1 and not (kept / "results.csv").exists()
