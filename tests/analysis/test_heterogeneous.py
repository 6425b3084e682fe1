import pandas as pd
import pytest

from analysis.heterogeneous import heterogeneous_plot, heterogeneous_table
from analysis.load import FACETS, label, load_rows
from analysis.paper.latency import paper_comparison
from analysis.points import partition_table
from analysis.report.terminal import tables
from tests.analysis import synthetic

MIX = {"device_profile": "gtx1660ti+half_gtx1660ti"}


def heterogeneous(**changes) -> pd.DataFrame:
    rows = [synthetic.row("single", bandwidth_mbps=mbps) | MIX for mbps in (20.0, 100.0)]
    for partition, wait, faster in (("equal", 20.0, 1), ("speed", 4.0, 2)):
        for method, groups in (("sequence", 0), ("astra", 1)):
            for mbps in (20.0, 100.0):
                made = synthetic.row(method, groups, bandwidth_mbps=mbps)
                made |= {"partition": partition, "straggler_wait_pct": wait, "speedup": 1.5 * faster} | MIX | changes
                rows.append(made | {"latency_ms": made["latency_ms"] / faster})
    return synthetic.frame(rows)


def test_both_partitions_stand_side_by_side():
    table = partition_table(heterogeneous())
    assert table[["label", "bandwidth_mbps"]].to_numpy().tolist() == [
        *(["sequence", 20.0], ["sequence", 100.0], ["astra G=1", 20.0], ["astra G=1", 100.0])
    ]
    assert (table["latency_ms_speed"] / table["latency_ms_equal"]).to_numpy() == pytest.approx(0.5)


def test_the_table_says_what_changes_and_who_waits():
    table = heterogeneous_table(heterogeneous())
    expected = ["sequence", "-50.0%¹", "1.50x¹, 3.00x¹", "20.0%¹, 4.00%¹", "-"]
    assert table.rows[0][:1] + table.rows[0][4:] == expected
    assert table.rows[2][-1] == "25.0%, 25.0%"
    assert "speed-up: over the fastest device alone, which needs 352.0 ms¹" in table.notes
    assert any("gtx1660ti+half_gtx1660ti" in note for note in table.notes)
    assert "~" in heterogeneous_table(heterogeneous(fidelity="degraded")).rows[0][2]


def test_a_run_prints_it_if_it_has_both():
    titles = [table.title for table in tables(heterogeneous())]
    assert titles[0].startswith("Heterogeneous devices")
    assert not any(
        title.startswith("Heterogeneous devices") for title in (table.title for table in tables(synthetic.sweep()))
    )


def test_labels_name_the_partition():
    frame = heterogeneous()
    found = set(partition_table(frame)["label"])
    assert found == {"sequence", "astra G=1"}
    assert label(frame.iloc[-1], ["partition"]) == f"astra G=1 {FACETS['partition'].format('speed')}"


def test_the_figure_is_drawn_if_there_are_both(tmp_path):
    drawn = heterogeneous_plot(heterogeneous(), tmp_path)
    assert [path.name for path in drawn] == ["heterogeneous.png", "heterogeneous.pdf"]
    assert heterogeneous_plot(synthetic.sweep(), tmp_path) == []


def test_older_rows_had_the_equal_partition(tmp_path):
    frame = synthetic.sweep(bandwidths=(10.0,))
    older = frame.drop(columns=["partition", "straggler_wait_pct", "full_precision_pct"])
    older.to_parquet(tmp_path / "results.parquet", index=False)
    rows = load_rows(tmp_path)
    assert set(rows["partition"]) == {"equal"} and rows["straggler_wait_pct"].isna().all()


def test_the_paper_is_compared_within_one_partition_and_the_device_mix_is_named():
    rows = heterogeneous()
    compared = paper_comparison(rows[rows["bandwidth_mbps"] == 20.0])
    assert compared["why"].str.contains("device profile gtx1660ti\\+half_gtx1660ti").all() and len(compared)
