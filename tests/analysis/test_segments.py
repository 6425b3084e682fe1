"""The table and the figure of predicted and measured times of segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.load import load_rows
from analysis.report.headlines import headlines
from analysis.report.terminal import summarize, tables
from analysis.segments import errors, segment_figure, segment_sentences
from testbed.results.run_folder import RunFolder
from testbed.results.schema import SEGMENT


def row(segment: str, predicted_us: float, measured_us: float, **others: Any) -> dict[str, Any]:
    fixed = {"variant": "tensor", "devices": 2, "tokens": 16, "model": "vit_tiny", "device_profile": "my_board"}
    fixed |= {"processor": "cpu", "threads": 2, "kernels": 1, "macs": 10, "moved_bytes": 4, "runs": 3, "computes": True}
    fixed |= {"fastest_us": measured_us, "slowest_us": measured_us, "steal_pct": 0.0, "foreign_pct": 7.0}
    times = {"segment": segment, "predicted_us": predicted_us, "measured_us": measured_us, "status": "ok", "error": ""}
    return fixed | times | others


ROWS = [
    row("tensor: embed", 110.0, 100.0),
    row("tensor: embed", 160.0, 200.0),
    row("int8: encode", 300.0, 200.0),
    row("int8: encode", 5.0, 50.0),
    row("fp32: encode", 0.0, 4.0),
    row("fp32: summed by transport", 500.0, 1.0, computes=False),
]


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    folder = RunFolder(tmp_path, "device_check", "abc", SEGMENT)
    folder.append(ROWS)
    lost = {"variant": "ring", "devices": 2, "tokens": 16, "segment": "", "status": "failed", "error": "no reason"}
    folder.append([lost])
    return load_rows(folder.path)


def test_errors_are_over_the_measured_time_and_short_segments_are_apart(frame: pd.DataFrame) -> None:
    table = errors(frame)
    assert table["error_pct"].round(6).tolist() == [10.0, -20.0, 50.0, -90.0, -100.0]
    assert table["short"].tolist() == [False, False, False, True, True]


def test_a_table_by_kind_of_segment(frame: pd.DataFrame) -> None:
    main, short, lost = tables(frame)
    assert main.rows == [
        ["int8: encode", "1", "200.0", "50.0%", "50.0%", "+50.0%"],
        ["tensor: embed", "2", "100.0 to 200.0", "15.0%", "19.5%", "-5.0%"],
        ["all kinds", "3", "100.0 to 200.0", "20.0%", "47.0%", "+10.0%"],
    ]
    assert [line[0] for line in short.rows] == ["fp32: encode", "int8: encode", "all kinds"]
    assert lost.rows == [["ring", "16", "no reason"]]
    notes = " ".join(main.notes)
    assert "2 segments are predicted to take less than 20 us" in notes
    assert "as often as they ran: predicted +14.0% against the measured time" in notes  # 570 us for 500
    assert "1 sums are not here" in notes and "7% of the cores (median; at most 7%), CPU steal 0%" in notes


def test_sentences_name_the_worst_kinds(frame: pd.DataFrame) -> None:
    first, second = segment_sentences(frame)
    assert "3 segments of 2 kinds, predictions are off by 20.0% in the median and 47.0%" in first
    assert "int8: encode (50%), tensor: embed (15%)" in second
    assert headlines(frame) == [first, second]
    assert segment_sentences(frame[frame["predicted_us"] < 20]) == [
        "No segment was computed that is long enough to compare."
    ]


def test_a_figure_is_written_where_there_are_segments(frame: pd.DataFrame, tmp_path: Path) -> None:
    files = segment_figure(frame, tmp_path / "out")
    assert [path.name for path in files] == ["segments.png", "segments.pdf"] and all(path.exists() for path in files)
    assert segment_figure(frame[frame["status"] != "ok"], tmp_path / "out") == []


def test_a_run_ends_with_the_table_and_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path, "device_check", "abc", SEGMENT)
    folder.append(ROWS)
    summarize(folder.path)
    out = capsys.readouterr().out
    assert "Predicted times of segments (profile my_board, on cpu, 2 threads)" in out and "all kinds" in out
    assert (folder.path / "report" / "segments.png").exists()
    assert "Predicted and measured times of segments" in (folder.path / "report" / "report.html").read_text()
