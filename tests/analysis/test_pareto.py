from __future__ import annotations

import pandas as pd

from analysis.load import normalize
from analysis.pareto import trade_off_plot, trade_off_table, trade_offs
from testbed.results.schema import ACCURACY
from tests.analysis import synthetic
from tests.analysis.synthetic_quality import quality

TINY = {"model": "vit_tiny", "hidden": 96}


def latencies(*extra: dict, **changes) -> pd.DataFrame:
    rows = [synthetic.row("single", **(TINY | changes))]
    rows += [synthetic.row("astra", groups, **(TINY | changes)) for groups in (1, 8)]
    return normalize(synthetic.frame([*rows, *extra]))


def test_points_of_the_same_model_meet():
    evaluated = normalize(quality(), ACCURACY)
    table = trade_offs(latencies(), evaluated)
    assert table["label"].tolist() == ["single", "astra G=1", "astra G=8"]
    assert table["value"].tolist() == [90.0, 88.03125, 88.25]  # trained codebooks, not k-means
    assert table["on_front"].all()  # each is faster or better than any other


def test_what_is_slower_and_worse_is_not_on_the_front():
    evaluated = normalize(quality(worse=30.0), ACCURACY)
    slow = latencies()
    slow.loc[slow["groups"] == 1, "latency_ms"] = 500.0
    front = trade_offs(slow, evaluated).set_index("label")["on_front"]
    assert front.to_dict() == {"single": True, "astra G=1": False, "astra G=8": True}


def test_less_perplexity_is_better():
    evaluated = normalize(quality(worse=-5.0).assign(metric="perplexity"), ACCURACY)  # 93 and more, against 90
    front = trade_offs(latencies(), evaluated).set_index("label")["on_front"]
    assert front["single"] and front["astra G=1"]
    slow = latencies()
    slow.loc[slow["groups"] > 0, "latency_ms"] = 500.0
    assert trade_offs(slow, evaluated)["on_front"].tolist() == [True, False, False]


def test_another_model_is_no_trade_off(tmp_path):
    evaluated = normalize(quality(), ACCURACY)
    for changes in ({"model": "vit_base"}, {"hidden": 768}, {"devices": 2}):
        table = trade_offs(latencies(**changes), evaluated)
        assert table.empty
        assert trade_off_plot(table, latencies(), evaluated, tmp_path) == []


def test_table_and_figure(tmp_path):
    evaluated = normalize(quality(), ACCURACY)
    rows = latencies(fidelity="degraded")
    table = trade_offs(rows, evaluated)
    text = trade_off_table(table, evaluated)
    assert text.rows[1][:4] == ["astra G=1", "4", "10", "138.1¹~"] and text.rows[1][-1] == "yes~"
    names = [path.name for path in trade_off_plot(table, rows, evaluated, tmp_path)]
    assert names == ["pareto.png", "pareto.pdf"]
