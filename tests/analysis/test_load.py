import pandas as pd
import pytest

from analysis.load import ResultsError, label, load_rows, revisions, with_labels
from testbed.results.schema import LATENCY
from tests.analysis import synthetic


def test_parquet_and_csv_give_the_same_frame(tmp_path):
    made = synthetic.sweep(bandwidths=(10.0,), repeats=2)
    made.to_csv(tmp_path / "results.csv", index=False)
    from_csv = load_rows(tmp_path)
    made.to_parquet(tmp_path / "results.parquet", index=False)
    pd.testing.assert_frame_equal(load_rows(tmp_path), from_csv)
    assert list(from_csv.columns) == list(LATENCY.columns)
    assert from_csv["verified"].all() and from_csv["error"].eq("").all()


def test_a_failed_point_has_missing_numbers_not_zeros(tmp_path):
    synthetic.frame([synthetic.failed("tensor")]).to_csv(tmp_path / "results.csv", index=False)
    (row,) = load_rows(tmp_path).to_dict("records")
    assert pd.isna(row["latency_ms"]) and pd.isna(row["verified"]) and row["model"] == ""
    assert row["error"].startswith("all_gather")


def test_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(ResultsError, match="no such folder"):
        load_rows(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match=r"no results\.parquet or results\.csv"):
        load_rows(tmp_path)
    path = tmp_path / "results.csv"
    path.write_text("")
    with pytest.raises(ResultsError, match="cannot be read"):
        load_rows(tmp_path)
    synthetic.frame([]).to_csv(path, index=False)
    with pytest.raises(ResultsError, match="has no rows"):
        load_rows(tmp_path)
    synthetic.frame([synthetic.row()]).drop(columns=["latency_ms", "tokens"]).to_csv(path, index=False)
    with pytest.raises(ResultsError, match="lacks the columns tokens, latency_ms"):
        load_rows(tmp_path)
    (tmp_path / "results.parquet").write_bytes(b"not parquet")
    with pytest.raises(ResultsError, match=r"results\.parquet: cannot be read"):
        load_rows(tmp_path)


def test_manifest_is_never_needed(tmp_path):
    assert revisions(tmp_path) == []
    (tmp_path / "manifest.json").write_text('{"runs": [{"git_sha": "ab')
    assert revisions(tmp_path) == []
    (tmp_path / "manifest.json").write_text('{"runs": [{"git_sha": "ab"}, {"git_sha": "ab"}, {"git_sha": null}]}')
    assert revisions(tmp_path) == ["ab"]


def test_label_names_the_groups_of_astra_only():
    assert label(synthetic.row("astra", 16)) == "astra G=16"
    assert label(synthetic.row("tensor")) == "tensor"
    assert label(synthetic.row("tensor", codec="int8")) == "tensor int8"


def test_labels_name_what_varies_within_a_method_and_nothing_else():
    rows = [
        synthetic.row("single", devices=1, tokens=1024),
        synthetic.row("astra", 1, devices=2, codebook_size=256),
        synthetic.row("astra", 1, devices=2, codebook_size=1024),
        synthetic.row("sequence", devices=2),
        synthetic.row("sequence", devices=4),
        synthetic.row("tensor", compute_mode="hold", network="loopback", time_scale=8.0),
        synthetic.row("tensor", compute_mode="analytic", network="analytic"),
    ]
    assert with_labels(synthetic.frame(rows))["label"].tolist() == [
        *("single", "astra G=1 K=256", "astra G=1 K=1024", "sequence N=2", "sequence N=4"),
        *("tensor [hold]", "tensor [analytic]"),  # network and time scale go with the mode
    ]


def test_a_failed_point_is_no_variant_of_its_own():
    rows = [synthetic.row("tensor"), synthetic.failed("tensor", bandwidth_mbps=20.0)]
    assert with_labels(synthetic.frame(rows))["label"].tolist() == ["tensor", "tensor"]


def test_settings_are_always_named():
    rows = [
        synthetic.row("sequence", settings="gather=kv", codec="int8"),
        synthetic.row("sequence", settings="gather=kv"),
        synthetic.row("sequence"),
        synthetic.row("tensor", settings="sync=star"),
        synthetic.row("single"),
    ]
    assert with_labels(synthetic.frame(rows))["label"].tolist() == [
        *("sequence gather=kv int8", "sequence gather=kv fp32", "sequence fp32", "tensor sync=star", "single")
    ]


def test_a_time_scale_chosen_for_each_point_is_no_variant():
    chosen = [synthetic.row("tensor", bandwidth_mbps=mbps, time_scale=k) for mbps, k in ((10.0, 0.125), (500.0, 4.0))]
    assert with_labels(synthetic.frame(chosen))["label"].tolist() == ["tensor", "tensor"]
    given = [synthetic.row("tensor", time_scale=scale) for scale in (1.0, 4.0)]
    assert with_labels(synthetic.frame(given))["label"].tolist() == ["tensor time x1", "tensor time x4"]


def test_rows_of_before_settings_had_a_column_are_read(tmp_path):
    made = synthetic.sweep(bandwidths=(10.0,), repeats=1)
    made.drop(columns=["settings", "messages", "paper_bytes", "paper_latency_ms"]).to_csv(
        tmp_path / "results.csv", index=False
    )
    rows = load_rows(tmp_path)
    assert (rows["settings"] == "").all() and rows["messages"].isna().all()
    assert with_labels(rows)["label"].tolist() == with_labels(made)["label"].tolist()
