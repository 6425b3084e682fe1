"""Incomplete or damaged results: one clear message, and the readable rows are shown."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.load import ResultsError
from analysis.runs import alike, find_runs, read_run
from tests.analysis import synthetic


def written(folder, frame: pd.DataFrame):
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "results.csv", index=False)
    return folder


def test_a_whole_run_has_nothing_to_be_said(tmp_path):
    run = read_run(written(tmp_path, synthetic.sweep()))
    assert (run.notes, run.experiment, run.started) == ([], "bandwidth_sweep", "")


def test_rows_of_an_older_version_lack_what_they_lack(tmp_path):
    older = synthetic.sweep(bandwidths=(10.0,)).drop(columns=["residual_pct", "payload_bytes", "topology", "verified"])
    run = read_run(written(tmp_path, older))
    assert run.notes == [
        "no row has topology, payload_bytes: another version of the testbed wrote these rows; results that need these "
        "columns are left out"
    ]
    assert run.frame["residual_pct"].isna().all() and (run.frame["topology"] == "").all()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"a": [1], "method": ["x"]}), "not results of this testbed"),
        (synthetic.sweep().drop(columns=["status"]), "lacks the columns status; written by another version"),
        (synthetic.frame([]), "has no rows"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, frame, message):
    with pytest.raises(ResultsError, match=message) as raised:
        read_run(written(tmp_path, frame))
    assert str(tmp_path / "results.csv") in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_is_no_folder(tmp_path):
    written(tmp_path, synthetic.sweep())
    with pytest.raises(ResultsError, match="a file; name the folder that it lies in"):
        read_run(tmp_path / "results.csv")


def test_measurements_that_are_no_numbers_are_said(tmp_path):
    frame = synthetic.sweep(bandwidths=(10.0,)).astype({"latency_ms": object})
    frame.loc[frame["method"] == "tensor", "latency_ms"] = "fast"
    (note,) = read_run(written(tmp_path, frame)).notes
    assert note == "3 of 21 rows are left out: their latency_ms is not a number"


def test_missing_single_is_said(tmp_path):
    frame = synthetic.sweep(bandwidths=(10.0,)).assign(speedup=None)
    (note,) = read_run(written(tmp_path, frame[frame["method"] != "single"])).notes
    assert "no rows of single, so there is no speed-up; run it too, with 'methods=[single,...]'" in note
    some = frame[(frame["method"] != "single") | (frame["repeat"] == 0)]
    assert read_run(written(tmp_path, some)).notes == [
        "some points have no speed-up, because single has no result under their conditions"
    ]


def test_a_partial_grid_is_said(tmp_path):
    frame = synthetic.sweep(bandwidths=(10.0, 20.0), repeats=1)
    (note,) = read_run(written(tmp_path, frame.iloc[:-3])).notes
    assert note.startswith("3 of 14 points of the grid have no rows")


def test_all_failed_is_said(tmp_path):
    run = read_run(written(tmp_path, synthetic.frame([synthetic.failed("single"), synthetic.failed("tensor")])))
    assert run.notes == ["no point has a result; the table of points without a result shows the errors"]


def test_networks_in_one_file_are_compared_each_with_its_own_single(tmp_path):
    one = synthetic.sweep(bandwidths=(10.0,), repeats=1, network="mininet")
    other = synthetic.sweep(bandwidths=(10.0,), repeats=1, network="loopback")
    other["latency_ms"] = other["latency_ms"] * 2
    mixed = pd.concat([one, other.assign(speedup=0.1)])
    run = read_run(written(tmp_path, mixed))
    assert "the file has rows of several networks (loopback and mininet)" in run.notes[0]
    speedups = run.frame.groupby(["method", "groups"])["speedup"]
    # Everything takes twice as long on the other network, so the ratios are equal, and not what the file said.
    assert (speedups.max() - speedups.min()).abs().max() < 1e-9
    assert speedups.max()["single", 0] == 1


def test_runs_below_a_folder_come_once_each(tmp_path):
    for name in ("a/one", "a/two", "a/two-20261121T100352.259034Z"):
        written(tmp_path / name, synthetic.sweep(bandwidths=(10.0,)))
    (tmp_path / "latest").symlink_to("a/two")
    runs, problems = find_runs([tmp_path, tmp_path / "latest"])
    assert len(runs) == 2 and not problems
    (aside,), _ = find_runs([tmp_path / "a" / "two-20261121T100352.259034Z"])  # named, so wanted
    assert aside.folder.name.startswith("two-")


def test_points_of_two_runs_are_those_of_the_later_one(tmp_path):
    early, late = synthetic.sweep(bandwidths=(10.0, 20.0)), synthetic.sweep(bandwidths=(10.0,))
    late["latency_ms"] = late["latency_ms"] * 3
    written(tmp_path / "early", early)
    written(tmp_path / "late", late)
    for name, date in (("early", "2026-01-01"), ("late", "2026-01-02")):
        (tmp_path / name / "manifest.json").write_text(f'{{"runs": [{{"started": "{date}"}}]}}')
    runs, _ = find_runs([tmp_path / "late", tmp_path / "early"])
    assert [run.started for run in runs] == ["2026-01-01", "2026-01-02"]
    (rows,) = alike(runs)
    single = rows[rows["method"] == "single"].groupby("bandwidth_mbps")["latency_ms"].min()
    assert single.to_dict() == {10.0: 3 * 352.0, 20.0: 352.0}
    other = synthetic.sweep(bandwidths=(10.0,), compute_mode="hold")
    written(tmp_path / "hold", other)
    assert len(alike(find_runs([tmp_path])[0])) == 2


def test_points_that_chose_their_time_scales_are_one_curve_and_tokens_may_be(tmp_path):
    chosen = pd.concat(
        [
            synthetic.sweep(bandwidths=(mbps,), time_scale=scale)
            for mbps, scale in ((10.0, 0.125), (20.0, 1.0), (50.0, 4.0))
        ]
    )
    written(tmp_path / "chosen", chosen)
    assert len(alike(find_runs([tmp_path])[0])) == 1
    written(tmp_path / "given", synthetic.sweep(bandwidths=(10.0,), time_scale=4.0))
    assert len(alike(find_runs([tmp_path])[0])) == 2
    written(tmp_path / "short", synthetic.sweep(bandwidths=(10.0,), time_scale=4.0, tokens=256))
    assert len(alike(find_runs([tmp_path])[0])) == 3
    assert len(alike(find_runs([tmp_path])[0], over="tokens")) == 2
