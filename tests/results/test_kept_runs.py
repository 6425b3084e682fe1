from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testbed.config.load import load_config
from testbed.errors import ConfigError, TestbedError
from testbed.results.kept_runs import LIST, ROOT, earlier_revision, kept_runs
from testbed.results.measurement_hash import measurement_hash

RUN: dict[str, Any] = {"name": "one", "kind": "latency", "words": ["+experiment=smoke"], "minutes": 2}
CONFIG = {"runner": "latency", "methods": ["single"]}


def listed(tmp_path: Path, *entries: Any) -> Path:
    path = tmp_path / "runs.yaml"
    path.write_text(json.dumps(list(entries)))
    return path


def test_every_kept_folder_is_a_run_of_the_list_and_composes() -> None:
    runs = kept_runs()
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / LIST).parent.rglob("manifest.json")}
    folders |= {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks/sample").rglob("manifest.json")}
    assert {run.folder for run in runs.values()} == folders
    for run in runs.values():
        load_config(list(run.words))
    assert next(iter(runs)) == "bandwidth_sweep"


def test_defaults_of_an_entry(tmp_path: Path) -> None:
    (run,) = kept_runs(listed(tmp_path, RUN)).values()
    assert run.path == ROOT / "docs/measured/one" and run.minutes == 2 and run.about == ""


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "runs[0]=3"),
        ({**RUN, "minuets": 1}, "needs the keys kind, minutes, name, words"),
        ({**RUN, "kind": "latencies"}, "did you mean latency"),
        ({**RUN, "words": "+experiment=smoke"}, "must be a list of texts KEY=VALUE"),
        ({**RUN, "words": []}, "must be a list of texts KEY=VALUE"),
        ({**RUN, "minutes": 0}, "must be a number above 0"),
        ({**RUN, "minutes": True}, "must be a number above 0"),
    ],
)
def test_a_wrong_entry_is_one_line(entry: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        kept_runs(listed(tmp_path, entry))
    assert message in str(error.value) and "runs.yaml" in str(error.value) and "\n" not in str(error.value)


def test_wrong_lists_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name=one .*must be used once"):
        kept_runs(listed(tmp_path, RUN, RUN))
    with pytest.raises(TestbedError, match="cannot be read"):
        kept_runs(tmp_path / "none.yaml")
    (tmp_path / "runs.yaml").write_text("[a: }")
    with pytest.raises(TestbedError, match="is no YAML data"):
        kept_runs(tmp_path / "runs.yaml")
    (tmp_path / "runs.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match="must be a list"):
        kept_runs(tmp_path / "runs.yaml")


def test_rows_are_as_old_as_their_oldest_code(tmp_path: Path) -> None:
    def signed(*hashes: str | None) -> str:
        entries = [
            {"started": f"2026-10-0{day}T00:00", "config": CONFIG, "measurement_hash": value}
            for day, value in enumerate(hashes, 1)
        ]
        (tmp_path / "manifest.json").write_text(json.dumps({"runs": entries}))
        return earlier_revision(tmp_path)

    now = measurement_hash(CONFIG)
    assert earlier_revision(tmp_path) == "unknown date"
    assert signed(now) == signed(now, now) == ""
    assert signed(None) == "2026-10-01" and signed("0123456789", now) == "2026-10-02"
    assert signed() == "unknown date"
