from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import compare
from analysis.load import ResultsError
from analysis.runs import Run, read_run
from tests.analysis import synthetic
from tests.analysis.synthetic_quality import quality

NOISE = (0.99, 1.0, 1.01, 0.995, 1.005)


def run_of(tmp_path, name: str, frame: pd.DataFrame) -> Run:
    folder = tmp_path / name
    folder.mkdir()
    frame.to_csv(folder / "results.csv", index=False)
    return read_run(folder)


def noisy(factor: float = 1.0, repeats: int = 5, **changes) -> pd.DataFrame:
    rows = []
    for bandwidth in (10.0, 20.0):
        for method, groups in (("single", 0), ("astra", 1)):
            made = synthetic.row(method, groups, bandwidth_mbps=bandwidth, **changes)
            slower = factor if method == "astra" and bandwidth == 10 else 1.0
            rows += [made | {"repeat": n, "latency_ms": made["latency_ms"] * NOISE[n] * slower} for n in range(repeats)]
    return synthetic.frame(rows)


def verdicts(table: pd.DataFrame) -> dict:
    return {(row["method"], row["bandwidth_mbps"]): row["verdict"] for _, row in table.iterrows()}


def test_what_changed_is_told_from_noise(tmp_path):
    a, b = run_of(tmp_path, "a", noisy()), run_of(tmp_path, "b", noisy(1.1))
    found = verdicts(compare.compare(a, b))
    assert found.pop(("astra", 10.0)) == compare.CHANGED
    assert set(found.values()) == {compare.SAME} and len(found) == 3
    assert set(verdicts(compare.compare(a, a)).values()) == {compare.SAME}


def test_what_runs_differ_by_anyhow_is_no_change(tmp_path):
    exact = noisy().assign(latency_ms=100.0)
    a, b = run_of(tmp_path, "a", exact), run_of(tmp_path, "b", exact.assign(latency_ms=102.9))
    assert set(verdicts(compare.compare(a, b)).values()) == {compare.SAME}
    c = run_of(tmp_path, "c", exact.assign(latency_ms=103.1))
    assert set(verdicts(compare.compare(a, c)).values()) == {compare.CHANGED}


def test_points_of_one_run_only_are_named(tmp_path):
    whole = noisy()
    a = run_of(tmp_path, "a", whole[whole["bandwidth_mbps"] == 10])
    b = run_of(tmp_path, "b", whole[whole["method"] == "astra"])
    assert verdicts(compare.compare(a, b)) == {
        ("single", 10.0): compare.ONLY_A,
        ("astra", 10.0): compare.SAME,
        ("astra", 20.0): compare.ONLY_B,
    }


def test_few_repeats_tell_nothing(tmp_path, capsys):
    a, b = run_of(tmp_path, "a", noisy(repeats=2)), run_of(tmp_path, "b", noisy(3.0, repeats=2))
    assert set(verdicts(compare.compare(a, b)).values()) == {compare.SAME}
    assert compare.main([str(a.folder), str(b.folder)]) == 0
    assert "not distinguishable (too few repeats)" in capsys.readouterr().out


@pytest.mark.parametrize(("repeats", "most"), [(3, 0.13), (5, 0.05), (10, 0.08)])
def test_an_unchanged_point_is_rarely_called_changed(repeats, most):
    """As the module says: one in ten with three repeats, one in twenty-five with five."""
    draw = np.random.default_rng(5)
    wrong = 0
    for _ in range(400):
        low, high = compare.ratio_interval(*draw.normal(100, 2, size=(2, repeats)))
        wrong += not low <= 1 <= high
    assert wrong / 400 <= most


def test_a_clear_change_is_found_in_either_direction():
    draw = np.random.default_rng(6)
    a = draw.normal(100, 1, size=5)
    low, high = compare.ratio_interval(a, 1.1 * a)
    assert 1 < low < 1.1 < high < 1.2
    back_low, back_high = compare.ratio_interval(1.1 * a, a)
    assert back_high < 1 and back_low == pytest.approx(1 / high, rel=0.05)


def test_repeatability_counts_points_by_their_length(tmp_path, capsys):
    rows_a, rows_b = [], []
    for bandwidth, old, new in ((10.0, 100.0, 102.9), (20.0, 100.0, 103.1), (50.0, 30.0, 31.9), (100.0, 30.0, 32.1)):
        made = synthetic.row("astra", 1, bandwidth_mbps=bandwidth)
        degraded = "degraded" if bandwidth == 20 else "ok"
        rows_a += [made | {"repeat": n, "latency_ms": old} for n in range(3)]
        rows_b += [made | {"repeat": n, "latency_ms": new, "fidelity": degraded} for n in range(3)]
    a, b = run_of(tmp_path, "a", synthetic.frame(rows_a)), run_of(tmp_path, "b", synthetic.frame(rows_b))
    assert compare.main([str(a.folder), str(b.folder)]) == 0
    out = capsys.readouterr().out
    assert "points in both: 2 of 4 agree (above 50 ms: 1 of 2 within 3%; others: 1 of 2 within 2 ms)" in out
    assert "points without degraded fidelity: 2 of 3 agree" in out


def test_conditions_that_differ_are_said(tmp_path):
    a = run_of(tmp_path, "a", noisy())
    b = run_of(tmp_path, "b", noisy(network="loopback", time_scale=2.0))
    text = compare.report(a, b)
    assert "- network differs: mininet in A, loopback in B" in text and "- time_scale differs: 1 in A, 2 in B" in text
    assert "model differs" not in text


def test_modes_are_compared_each_with_itself(tmp_path):
    a, b = run_of(tmp_path, "a", synthetic.clock_check()), run_of(tmp_path, "b", synthetic.clock_check())
    table = compare.compare(a, b)
    assert len(table) == 30 and (table["ratio"] == 1).all()


def test_qualities_are_compared_by_their_intervals(tmp_path):
    a, b = run_of(tmp_path, "a", quality()), run_of(tmp_path, "b", quality(worse=10.0))
    found = {(row["stage"], row["groups"]): row["verdict"] for _, row in compare.compare(a, b).iterrows()}
    assert found["uncompressed", 0] == compare.SAME and found["trained", 1] == compare.CHANGED


def test_different_kinds_cannot_be_compared(tmp_path, capsys):
    a, b = run_of(tmp_path, "a", quality()), run_of(tmp_path, "b", noisy())
    with pytest.raises(ResultsError, match="different kinds"):
        compare.compare(a, b)
    assert compare.main([str(a.folder), str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_nothing_finished_is_said(tmp_path):
    a = run_of(tmp_path, "a", synthetic.frame([synthetic.failed("tensor")]))
    assert compare.report(a, a).endswith("No point of either run has a result.")
