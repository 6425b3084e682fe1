"""Text of result rows comes back as it was written, from CSV as from Parquet, and no text is a missing value."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analysis.load import load_rows
from analysis.points import points
from testbed.errors import printable
from testbed.results.run_folder import RunFolder
from testbed.results.schema import LATENCY
from tests.results.test_run_folder import row

FREE = ("model", "topology", "device_profile", "fidelity_note", "settings")  # text columns with any value


@pytest.fixture(scope="module")
def results_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


def read_both(results_dir: Path, texts: list[str], number: float) -> list[pd.DataFrame]:
    """The rows that are read from both files of a run whose rows have these texts."""
    folder = RunFolder(results_dir, "smoke", "abc")
    folder.parquet.unlink(missing_ok=True)
    filled = {name: texts[index % len(texts)] for index, name in enumerate(FREE)}
    folder.append([row(compute_mode="replay", residual_pct=number, **filled), row("tensor", compute_mode="hold")])
    from_parquet = load_rows(folder.path)
    folder.parquet.unlink()
    return [from_parquet, load_rows(folder.path)]


@settings(max_examples=20)
@given(st.lists(st.text(), min_size=1, max_size=5), st.floats(allow_nan=False, allow_infinity=False))
@example(["NA", "null", "nan", "None", ""], 0.1)
@example(["007", "1e5", "=cmd|' /C calc'!A0", "-", "True"], 1e-300)
@example(['"', "a,b", "\n", "\r", "\r\n\0"], 1.7976931348623157e308)
@example(["\ud800", "ä×µ≈", "\x1b[2J", " blank ", "\ufeff"], -0.1)
def test_both_files_give_what_was_written(results_dir: Path, texts: list[str], number: float) -> None:
    from_parquet, from_csv = read_both(results_dir, texts, number)
    pd.testing.assert_frame_equal(from_csv, from_parquet, check_exact=True)
    assert from_csv["residual_pct"][0] == number
    for index, name in enumerate(FREE):
        assert from_csv[name][0] == printable(texts[index % len(texts)])


def test_missing_numbers_stay_missing(results_dir: Path) -> None:
    folder = RunFolder(results_dir, "missing", "abc")
    lost = {name: row()[name] for name in LATENCY.keys} | {"status": "failed", "error": "NA"}
    folder.append([row(wire_bytes=None, compute_mode="replay", verified=None), lost | {"bandwidth_mbps": None}])
    folder.parquet.unlink()
    found, failed = load_rows(folder.path).to_dict("records")
    assert pd.isna(found["wire_bytes"]) and pd.isna(found["verified"]) and found["latency_ms"] == 0.5
    assert pd.isna(failed["latency_ms"]) and pd.isna(failed["bandwidth_mbps"]) and failed["error"] == "NA"


def test_a_model_may_be_called_na(results_dir: Path) -> None:
    for frame in read_both(results_dir, ["NA"], 0.0):
        assert points(frame).set_index("method")["model"]["single"] == "NA"
