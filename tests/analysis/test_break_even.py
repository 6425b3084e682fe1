from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.break_even import break_even, break_even_map, break_even_table
from tests.analysis import synthetic


def at(speedups: dict[float, float], devices: int = 4, repeats: int = 2, **changes) -> list[dict]:
    """astra G=1 with these speed-ups at these bandwidths."""
    return [
        synthetic.row("astra", 1, bandwidth_mbps=mbps, devices=devices, repeat=repeat, **changes) | {"speedup": speedup}
        for mbps, speedup in speedups.items()
        for repeat in range(repeats)
    ]


def cell(rows: list[dict]) -> str:
    (line,) = break_even_table(synthetic.frame(rows)).rows
    return line[1]


def test_the_lowest_bandwidth_that_wins_is_bracketed_by_the_highest_that_loses():
    assert cell(at({10.0: 0.2, 20.0: 0.8, 50.0: 4 / 3, 100.0: 2.0})) == "20 to 50 (≈28.6)"
    assert cell(at({10.0: 1.2, 20.0: 1.9})) == "10 or less"
    assert cell(at({10.0: 0.2, 20.0: 0.9})) == "never up to 20"
    assert cell(at({10.0: 0.5, 20.0: 1.1, 50.0: 0.9})) == "10 to 20 (≈18.5)*"
    assert break_even(synthetic.frame(at({10.0: 2.0}))).empty  # one bandwidth has no other to compare with


def test_degraded_speed_ups_decide_nothing():
    slow, fast = at({10.0: 0.5, 50.0: 2.0}), at({20.0: 4.0}, fidelity="degraded")
    assert cell([*slow, *fast]) == "10 to 50 (≈21.4)~"  # not 10 to 20
    table = break_even_table(synthetic.frame([*slow, *fast]))
    assert table.notes[-1].startswith("~ left out here")
    none = at({10.0: 0.5, 20.0: 1.1}, fidelity="degraded")
    assert cell(none) == "not known~" and cell(none + at({50.0: 2.0})) == "not known~"
    (found,) = break_even(synthetic.frame(none)).to_dict("records")
    assert pd.isna([found["wins_mbps"], found["loses_mbps"], found["estimate_mbps"], found["highest_mbps"]]).all()


def test_one_repeat_is_said():
    table = break_even_table(synthetic.frame(at({10.0: 0.5, 20.0: 1.5}, repeats=1)))
    assert table.rows == [["astra G=1", "10 to 20 (≈16.0)¹"]] and table.notes[-1].startswith("¹ one repeat")
    assert cell(at({10.0: 0.5, 20.0: 1.5}, warm_up=0)) == "10 to 20 (≈16.0)¹"


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 4.0), min_size=2, max_size=6))
def test_break_even_is_where_speedup_passes_one(speedups):
    mbps = [10.0 * 2**index for index in range(len(speedups))]
    (found,) = break_even(synthetic.frame(at(dict(zip(mbps, speedups, strict=True))))).to_dict("records")
    winners = [rate for rate, speedup in zip(mbps, speedups, strict=True) if speedup > 1]
    assert found["wins_mbps"] == winners[0] if winners else pd.isna(found["wins_mbps"])
    bracketed = winners and winners[0] > mbps[0]
    assert pd.notna(found["estimate_mbps"]) == bool(bracketed)
    assert not bracketed or found["loses_mbps"] <= found["estimate_mbps"] <= found["wins_mbps"]


@settings(max_examples=30)
@given(st.floats(0.05, 0.9), st.floats(11, 900))
def test_the_estimate_is_exact_for_compute_plus_bits_over_bandwidth(fraction, true_mbps):
    """A method that computes ``fraction`` of one device's time, and sends what takes the rest at ``true_mbps``."""
    speedups = {mbps: 1 / (fraction + (1 - fraction) * true_mbps / mbps) for mbps in (10.0, 100.0, 1000.0)}
    (found,) = break_even(synthetic.frame(at(speedups))).to_dict("records")
    assert found["estimate_mbps"] == pytest.approx(true_mbps)


def test_a_column_for_each_number_of_devices_and_tokens():
    rows = at({10.0: 0.5, 20.0: 1.5}, devices=2) + at({10.0: 1.5, 20.0: 2.5}, devices=4)
    table = break_even_table(synthetic.frame(rows))
    assert table.columns == ["method", "2 devices", "4 devices"]
    assert table.rows == [["astra G=1", "10 to 20 (≈16.0)", "10 or less"]]
    longer = at({10.0: 1.5, 20.0: 2.5}, tokens=2048) + rows
    table = break_even_table(synthetic.frame(longer))
    assert table.columns[1:] == ["2 devices, 1024 tokens", "4 devices, 1024 tokens", "4 devices, 2048 tokens"]
    assert table.rows == [["astra G=1", "10 to 20 (≈16.0)", "10 or less", "10 or less"]]


def test_what_was_measured_and_what_the_model_says_are_named_apart():
    rows = at({10.0: 0.5, 20.0: 1.5})
    assert break_even_table(synthetic.frame(rows)).title.endswith(", measured")
    model = at({10.0: 0.5, 20.0: 1.5}, compute_mode="analytic", network="analytic")
    assert break_even_table(synthetic.frame(model)).title.endswith("by the cost model: nothing was measured")


def test_a_map_needs_what_it_shows(tmp_path):
    rows = at({10.0: 0.5, 20.0: 1.5}, devices=2) + at({10.0: 1.5, 20.0: 2.5}, devices=4)
    names = [path.name for path in break_even_map(synthetic.frame(rows), tmp_path)]
    assert names == ["break_even.png", "break_even.pdf"]
    assert break_even_map(synthetic.frame([synthetic.row("single")]), tmp_path) == []
