import pandas as pd
import pytest

from analysis.latency_tables import latency_tables
from analysis.paper.latency import paper_comparison
from analysis.points import (
    latency_table,
    mode_table,
    points,
    speedup_table,
    unfinished,
)
from analysis.report.terminal import result_tables
from analysis.text_table import number
from tests.analysis import synthetic

ORDER = ["single", "tensor", "sequence", "pipeline", "astra G=1", "astra G=16", "astra G=32"]


def test_golden_latency_and_speedup():
    frame = synthetic.sweep(bandwidths=(100.0, 10.0))
    latency = latency_table(frame)
    assert latency.index.tolist() == ORDER
    assert latency.columns.tolist() == [10.0, 100.0]
    # sequence: 123 ms of compute, 226.49 Mbit at 10 Mbps, 2 ms of waiting; the median repeat is 2% slower.
    assert latency.at["sequence", 10.0] == pytest.approx(1.02 * (123 + 22649 + 2))
    assert speedup_table(frame).at["sequence", 10.0] == pytest.approx(350 / 1.02 / (123 + 22649 + 2))


def test_variants_are_in_the_order_of_their_numbers():
    frame = synthetic.frame([synthetic.row("sequence", tokens=tokens) for tokens in (1024, 256, 4096)])
    assert latency_table(frame).index.tolist() == ["sequence T=256", "sequence T=1024", "sequence T=4096"]


def test_spread_is_slowest_less_fastest_over_median():
    table = points(synthetic.sweep(bandwidths=(10.0,)))
    assert table["repeats"].eq(3).all()
    assert table["spread_pct"].to_numpy() == pytest.approx(100 * 0.04 / 1.02)
    once = synthetic.sweep(bandwidths=(10.0,), repeats=1)
    assert points(once)["spread_pct"].isna().all()


def test_numbers_of_one_repeat_or_without_a_warm_up_say_so():
    table = points(synthetic.sweep(bandwidths=(10.0,)))
    assert not table["one"].any() and not table["speedup_one"].any()
    parts = [synthetic.sweep((10.0,), repeats=1), synthetic.sweep((20.0,)), synthetic.sweep((50.0,), warm_up=0)]
    frame = pd.concat(parts, ignore_index=True)
    table = points(frame).set_index("bandwidth_mbps")
    assert table["one"].groupby(level=0).all().to_dict() == {10.0: True, 20.0: False, 50.0: True}
    latency, speedup = latency_tables(frame)
    assert latency.rows[0][1:4] == ["352.0¹", "359.0", "359.0¹"] and latency.notes[0].startswith("¹ one repeat")
    assert speedup.rows[1][1:4] == ["0.00386¹", "0.00756", "0.0188¹"]
    model = points(synthetic.sweep((10.0,), repeats=1, compute_mode="analytic", network="analytic"))
    assert not model["one"].any()  # nothing was measured, so nothing can be repeated


def test_a_speed_up_over_one_repeat_of_single_says_so():
    rows = synthetic.sweep(bandwidths=(10.0, 20.0))
    once = (rows["method"] == "single") & (rows["bandwidth_mbps"] == 10.0) & (rows["repeat"] > 0)
    latency, speedup = latency_tables(rows[~once])
    assert latency.rows[4][1:3] == ["140.9", "136.2"] and speedup.rows[4][1:3] == ["2.48¹", "2.57"]
    older = points(rows.assign(warm_up=None))
    assert not older["one"].any()  # rows of an older version do not say whether there was a warm-up


def test_a_point_is_verified_if_every_repeat_is_and_degraded_if_any_is():
    rows = [
        synthetic.row(groups=1, repeat=0, verified=True, fidelity="degraded"),
        synthetic.row(groups=1, repeat=1, verified=False),
    ]
    (point,) = points(synthetic.frame(rows)).to_dict("records")
    assert (point["verified"], point["degraded"]) == (False, True)


def test_single_without_a_bandwidth_stands_at_every_bandwidth():
    rows = [synthetic.row("single", bandwidth_mbps=None), synthetic.row("sequence"), synthetic.row(bandwidth_mbps=20.0)]
    assert latency_table(synthetic.frame(rows)).loc["single"].tolist() == [352.0, 352.0]


def test_failed_points_are_named_once_and_leave_gaps():
    lost = [synthetic.failed("tensor", repeat=repeat) for repeat in range(2)]
    frame = synthetic.frame([synthetic.row("sequence"), *lost])
    assert unfinished(frame)[["label", "status"]].to_numpy().tolist() == [["tensor", "failed"]]
    assert "tensor" not in latency_table(frame).index
    grid = result_tables(frame)[0]
    assert grid.rows[1] == ["tensor", "failed", "-", "0", "-"]


def test_paper_comparison_shows_only_points_in_the_papers_setting():
    shown = paper_comparison(synthetic.sweep())
    assert shown["ratio"].tolist() == [
        *("astra G=1 over single", "astra G=1 over single", "astra G=32 over single"),
        *("astra G=1 over sequence", "astra G=1 over tensor"),
    ]
    assert shown["paper"].tolist() == [2.64, 2.74, 1.27, 171.82, 342.7]
    first = shown.iloc[0]
    # 352 ms on one device over 123 + 2.6 + 9.22 + 2 + 1.3 ms.
    assert first["ours"] == pytest.approx(352 / 138.12)
    assert first["difference_pct"] == pytest.approx(100 * (352 / 138.12 / 2.64 - 1))
    for changes in ({"tokens": 256}, {"layers": 2}, {"devices": 2}, {"loss_pct": 5.0}):
        assert paper_comparison(synthetic.sweep(**changes)).empty


def test_paper_comparison_says_in_what_the_conditions_differ():
    why = paper_comparison(synthetic.sweep(network="loopback", time_scale=4.0))["why"]
    assert "the paper divides bits by bandwidth; ours is on network loopback" in why.iloc[0]
    assert "ours includes encoding (2.6 ms)" in why.iloc[0]
    assert "time scale 4" in why.iloc[0]
    assert "tensor sends 4x the bits of sequence; the paper counts 2x" in why.iloc[4]
    model = synthetic.sweep(network="analytic", compute_mode="analytic", encode_ms=0.0)
    assert paper_comparison(model)["why"].iloc[0] == "ours is from the cost model: nothing was measured"
    executed = synthetic.sweep(compute_mode="execute", fidelity="degraded")
    assert (
        "ours computes at the speed of this machine; ours includes encoding"
        in paper_comparison(executed)["why"].iloc[0]
    )
    assert "degraded fidelity" in paper_comparison(executed)["why"].iloc[0]
    assert paper_comparison(synthetic.sweep(repeats=1))["why"].str.contains("one repeat").all()


def test_paper_comparison_needs_both_sides():
    frame = synthetic.sweep()
    left = paper_comparison(frame[~frame["method"].isin(["tensor", "single"])])
    assert left["ratio"].tolist() == ["astra G=1 over sequence"]


def test_modes_are_compared_with_the_first():
    table = mode_table(synthetic.clock_check())
    assert table.columns.tolist() == ["hold", "replay", "analytic", "replay vs hold", "analytic vs hold"]
    assert table["replay vs hold"].to_numpy() == pytest.approx(-1)
    assert table["analytic vs hold"].to_numpy() == pytest.approx(-5)
    assert table.index[0] == ("single", 20.0)
    assert mode_table(synthetic.sweep()).empty


@pytest.mark.parametrize(
    ("value", "text"),
    [(45230.4, "45,230"), (132.64, "132.6"), (2.638, "2.64"), (0.0077, "0.00770"), (0.0, "0.00"), (None, "-")],
)
def test_numbers_have_three_digits(value, text):
    assert number(float("nan") if value is None else value) == text


def test_tables_of_an_empty_grid_of_results():
    frame = synthetic.frame([synthetic.failed("tensor"), synthetic.failed("astra", 1)])
    titles = [table.title for table in result_tables(frame)]
    assert titles == ["Latency (ms, median over repeats)", "Points without a result"]
    assert isinstance(latency_table(frame), pd.DataFrame)
