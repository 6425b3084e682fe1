from __future__ import annotations

import pytest

from analysis.paper.peers import peers_table
from analysis.report.terminal import tables
from experiments.cost_model.analytic import analytic_row
from experiments.cost_model.point_costs import PointCosts
from testbed.config.load import load_config
from testbed.config.schema import LatencyConfig
from testbed.grid import points
from testbed.results.schema import with_speedup
from tests.analysis import synthetic


def rows_of(*words: str):
    config = load_config(["+experiment=peers", *words])
    assert isinstance(config, LatencyConfig)
    return with_speedup(synthetic.frame(analytic_row(PointCosts(point, config)) for point in points(config)))


def ours(frame) -> dict[str, list[float]]:
    """Our results, by publication."""
    found: dict[str, list[float]] = {}
    for row in peers_table([frame]).rows:
        found.setdefault(row[0], []).extend([float(row[3].split()[0])] if row[3] != "-" else [])
    return found


def test_results_that_the_published_setting_determines_agree():
    results = ours(rows_of())
    # PRISM counts multiply-accumulates. Time of computation also has norms, means and launches.
    assert results["PRISM"] == [pytest.approx(99.2, abs=0.05), pytest.approx(51.24, abs=1.0)]
    assert results["Voltage"] == [pytest.approx(4, rel=0.01)]
    assert ours(rows_of("preset=distributed_llama"))["distributed-llama"] == [272, 816]


def test_what_has_nothing_beside_it_is_listed_with_the_reason():
    table = peers_table([rows_of()])
    lines = {(row[0], row[1].rpartition(", ")[2]): row for row in table.rows}
    assert len(table.rows) == 7 and len(lines) == 7
    assert lines["distributed-llama", "4 devices"][3:6] == ["-", "-", "no point in this setting; run +experiment=peers"]
    detransformer = next(row for row in table.rows if row[0] == "DeTransformer")
    assert detransformer[3] == "-" and "does not say" in detransformer[5]
    assert all(row[-1] for row in table.rows)  # a source
    assert "nothing was measured" in table.rows[0][5]


def test_a_run_ends_with_the_published_results_that_it_can_be_compared_with():
    shown = [
        table
        for table in tables(rows_of().assign(experiment="peers"))
        if table.title == "Results of related work beside ours"
    ]
    assert [row[0] for table in shown for row in table.rows] == ["PRISM", "PRISM", "Voltage"]
    assert not any("related work" in table.title for table in tables(synthetic.sweep()))
