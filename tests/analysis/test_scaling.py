from __future__ import annotations

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.scaling import break_even, break_even_map, break_even_table, devices_plot
from tests.analysis import synthetic


def at(speedups: dict[float, float], devices: int = 4, **changes) -> list[dict]:
    """astra G=1 with these speed-ups at these bandwidths."""
    return [
        synthetic.row("astra", 1, bandwidth_mbps=mbps, devices=devices, **changes) | {"speedup": speedup}
        for mbps, speedup in speedups.items()
    ]


def cell(rows: list[dict]) -> str:
    (line,) = break_even_table(synthetic.frame(rows)).rows
    return line[1]


def test_the_lowest_bandwidth_that_wins_is_bracketed_by_the_highest_that_loses():
    assert cell(at({10.0: 0.2, 20.0: 0.9, 50.0: 1.1, 100.0: 2.0})) == "20 to 50"
    assert cell(at({10.0: 1.2, 20.0: 1.9})) == "10 or less"
    assert cell(at({10.0: 0.2, 20.0: 0.9})) == "never up to 20"
    assert cell(at({10.0: 0.2, 20.0: 1.1, 50.0: 0.9})) == "10 to 20*"
    assert cell(at({10.0: 0.2, 20.0: 1.1}, fidelity="degraded")) == "10 to 20~"
    assert break_even(synthetic.frame(at({10.0: 2.0}))).empty  # one bandwidth has no other to compare with


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 4.0), min_size=2, max_size=6))
def test_break_even_is_where_speedup_passes_one(speedups):
    mbps = [10.0 * 2**index for index in range(len(speedups))]
    (found,) = break_even(synthetic.frame(at(dict(zip(mbps, speedups, strict=True))))).to_dict("records")
    winners = [rate for rate, speedup in zip(mbps, speedups, strict=True) if speedup > 1]
    assert found["wins_mbps"] == winners[0] if winners else pd.isna(found["wins_mbps"])


def test_a_column_for_each_number_of_devices():
    rows = at({10.0: 0.5, 20.0: 1.5}, devices=2) + at({10.0: 1.5, 20.0: 2.5}, devices=4)
    table = break_even_table(synthetic.frame(rows))
    assert table.columns == ["method", "2 devices", "4 devices"]
    assert table.rows == [["astra G=1", "10 to 20", "10 or less"]]


def test_figures_need_what_they_show(tmp_path):
    rows = at({10.0: 0.5, 20.0: 1.5}, devices=2) + at({10.0: 1.5, 20.0: 2.5}, devices=4)
    assert [path.name for path in devices_plot(synthetic.frame(rows), tmp_path)] == ["devices.png", "devices.pdf"]
    assert [path.name for path in break_even_map(synthetic.frame(rows), tmp_path)] == [
        "break_even.png",
        "break_even.pdf",
    ]
    assert devices_plot(synthetic.frame(at({10.0: 0.5, 20.0: 1.5})), tmp_path) == []
    assert break_even_map(synthetic.frame([synthetic.row("single")]), tmp_path) == []
