"""A ratio is as good as the worse of its two sides: whatever compares with a degraded point is degraded."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.axes import Axes

from analysis.break_even import break_even, break_even_table
from analysis.heterogeneous import heterogeneous_plot, heterogeneous_table
from analysis.latency import speedup_plot
from analysis.latency_tables import latency_tables, mode_comparison
from analysis.links import fidelity_tables
from analysis.load import load_rows, normalize
from analysis.pareto import trade_off_table, trade_offs
from analysis.points import points
from analysis.report.headlines import headlines
from analysis.runs import alike, find_runs, read_run
from analysis.scaling import devices_plot, tokens_tables
from testbed.results.run_folder import RunFolder
from testbed.results.schema import ACCURACY, LATENCY, with_speedup
from tests.analysis import synthetic
from tests.analysis.synthetic_quality import quality
from tests.analysis.test_heterogeneous import heterogeneous
from tests.analysis.test_incast import cliff
from tests.analysis.test_links import frame as links
from tests.analysis.test_links import rows as link_rows
from tests.results.test_run_folder import row


def slow_single(rows: pd.DataFrame, bandwidth_mbps: float = 10.0) -> pd.DataFrame:
    """The rows with a degraded ``single`` at one bandwidth, 1.5 times as slow as it should be."""
    which = (rows["method"] == "single") & (rows["bandwidth_mbps"] == bandwidth_mbps)
    slow = rows["latency_ms"].where(~which, 1.5 * rows["latency_ms"])
    rows = rows.assign(latency_ms=slow, fidelity=rows["fidelity"].where(~which, "degraded"))
    return with_speedup(rows).astype({"speedup": float})


SWEEP = slow_single(synthetic.sweep(bandwidths=(10.0, 100.0)))


def test_a_speed_up_says_that_its_single_is_degraded() -> None:
    table = points(SWEEP).set_index(["label", "bandwidth_mbps"])
    assert table["degraded"].sum() == 1 and table.loc[("single", 10.0), "degraded"]
    assert table.xs(10.0, level=1)["speedup_degraded"].all() and not table.xs(100.0, level=1)["speedup_degraded"].any()


def test_rows_carry_it_and_lose_nothing_when_a_point_is_degraded_later(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "smoke", "abc")
    folder.append(
        [row(), row("tensor"), row(bandwidth_mbps=20), row("tensor", bandwidth_mbps=20), row("ring", tokens=9)]
    )
    assert folder.rows()["speedup_fidelity"].fillna("-").tolist() == ["ok"] * 4 + ["-"]
    folder.degrade({LATENCY.key(row()): "links are off their rate"})
    assert folder.rows()["speedup_fidelity"].fillna("-").tolist() == ["degraded", "degraded", "ok", "ok", "-"]
    assert folder.rows()["fidelity"].tolist() == ["degraded", *["x"] * 4]
    older = folder.rows().drop(columns="speedup_fidelity").assign(compute_mode="replay")
    older.to_parquet(folder.parquet, index=False)
    assert load_rows(folder.path)["speedup_fidelity"].tolist() == ["degraded", "degraded", "ok", "ok", ""]


def test_networks_are_never_compared_with_each_other(tmp_path: Path) -> None:
    rows = [synthetic.row("single", network="loopback", time_scale=2.0), synthetic.row("tensor")]
    synthetic.frame(rows).to_csv(tmp_path / "results.csv", index=False)
    rows += [synthetic.row("single", latency_ms=700.0)]
    synthetic.frame(rows).to_csv(tmp_path / "results.csv", index=False)
    tensor = read_run(tmp_path).frame.set_index("method").loc["tensor"]
    assert tensor["speedup"] == pytest.approx(700 / tensor["latency_ms"])


def test_runs_together_keep_what_each_compared_with(tmp_path: Path) -> None:
    """The later run has a sound single; the speed-ups of the earlier one are still over its own."""
    two = synthetic.sweep(bandwidths=(10.0,))
    two["devices"] = two["devices"].where(two["method"] == "single", 2)
    for name, rows in (("a", slow_single(synthetic.sweep(bandwidths=(10.0,)))), ("b", with_speedup(two))):
        (tmp_path / name).mkdir()
        rows.to_csv(tmp_path / name / "results.csv", index=False)
        (tmp_path / name / "manifest.json").write_text(f'{{"runs": [{{"started": "{name}"}}]}}')
    (rows,) = alike(find_runs([tmp_path])[0])
    assert not points(rows).set_index("method").loc["single", "degraded"]
    found = points(rows[rows["method"] == "tensor"]).set_index("devices")["speedup_degraded"]
    assert found.to_dict() == {2.0: False, 4.0: True}


def test_tables_mark_speed_ups_but_not_latencies() -> None:
    latency, speedup = latency_tables(SWEEP)
    astra = [table.rows[4][:3] for table in (latency, speedup)]
    assert astra == [["astra G=1", "140.9", "132.4"], ["astra G=1", "3.82~", "2.71"]]
    assert any("of one device at the same bandwidth" in note for note in speedup.notes)
    tokens = pd.concat([SWEEP, synthetic.sweep(bandwidths=(10.0, 100.0), tokens=256)])
    latency, speedup = tokens_tables(tokens)
    assert latency.rows[2] == ["tensor", "4", "10", "92,501", "92,501"]
    assert speedup.rows[2] == ["tensor", "4", "10", "0.00378", "0.00582~"] and speedup.notes


def test_no_sentence_takes_a_degraded_single_for_a_sound_one() -> None:
    found = headlines(slow_single(synthetic.sweep(bandwidths=(10.0,))))
    assert not any("times as fast" in line or "Slower than" in line or "One device needs" in line for line in found)
    assert (
        "6 of 6 speed-ups are degraded because the single that they are over is; the sentences here leave them out."
        in found
    )
    assert "At 10 Mbps nothing is said: every speed-up there is degraded." in found
    assert "How long one device needs is not said: every single is degraded." in found
    found = headlines(SWEEP)
    assert any(line.startswith("At 100 Mbps the fastest is astra") for line in found)
    assert [line for line in found if line.startswith("At 10 Mbps")] == [
        "At 10 Mbps nothing is said: every speed-up there is degraded."
    ]
    believed = headlines(SWEEP.assign(speedup_fidelity="ok", fidelity="ok"))  # the sentence that must not be there
    assert any(line.startswith("At 10 Mbps the fastest is astra G=1") and "3.82 times" in line for line in believed)


def test_all_degraded_is_said() -> None:
    found = headlines(with_speedup(synthetic.sweep(bandwidths=(10.0,), fidelity="degraded")))
    assert [line for line in found if line.startswith("7 of 7 points are degraded")]
    assert not any("times as fast" in line for line in found)


def test_no_break_even_rests_on_a_degraded_single() -> None:
    """With the slow single, astra G=32 would seem to win at 10 Mbps."""
    three = slow_single(synthetic.sweep(bandwidths=(10.0, 100.0, 200.0)))
    believed = break_even_table(three.assign(speedup_fidelity="ok"))
    assert {line[0]: line[1] for line in believed.rows}["astra G=32"] == "10 or less"
    table = break_even_table(three)
    cells = {line[0]: line[1] for line in table.rows}
    assert cells["astra G=32"] == "100 or less~" and cells["tensor"] == "never up to 200~"
    assert any(note.startswith("~ left out here") for note in table.notes)
    assert set(break_even(SWEEP)["degraded"]) == {True} and break_even(SWEEP)["wins_mbps"].isna().all()
    assert {line[1] for line in break_even_table(SWEEP).rows} == {"not known~"}  # one bandwidth is left


@pytest.fixture
def faces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The colors inside the markers of lines and of scattered points that are drawn."""
    found: list[str] = []
    plot, scatter = Axes.plot, Axes.scatter

    def plotted(self: Axes, x, *words, **look):
        found.extend([str(look["markerfacecolor"])] * len(x) if look.get("marker") not in (None, "*") else [])
        return plot(self, x, *words, **look)

    def scattered(self: Axes, *words, c, **look):
        found.extend(map(str, c))
        return scatter(self, *words, c=c, **look)

    monkeypatch.setattr(Axes, "plot", plotted)
    monkeypatch.setattr(Axes, "scatter", scattered)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path: path.write_bytes(b""))
    return found


def test_figures_have_hollow_markers_for_degraded_speed_ups(faces: list[str], tmp_path: Path) -> None:
    speedup_plot(SWEEP, tmp_path)
    assert faces.count("white") == 6 and len(faces) == 12
    faces.clear()
    eight = synthetic.sweep(bandwidths=(10.0, 100.0), devices=8)
    both = pd.concat([synthetic.sweep(bandwidths=(10.0, 100.0)), eight[eight["method"] != "single"]])
    devices_plot(slow_single(both), tmp_path)
    assert faces.count("white") == 12 and len(faces) == 24
    faces.clear()
    heterogeneous_plot(slow_single(heterogeneous(), 20.0), tmp_path)
    assert faces.count("white") == 4 and len(faces) == 16  # speed-ups at 20 Mbps, but not the waiting beside them


def test_the_comparison_of_partitions_marks_what_it_compares() -> None:
    rows = heterogeneous()
    which = (rows["partition"] == "equal") & (rows["method"] == "sequence") & (rows["bandwidth_mbps"] == 20.0)
    table = heterogeneous_table(with_speedup(rows.assign(fidelity=rows["fidelity"].where(~which, "degraded"))))
    assert [cell.count("~") for cell in table.rows[0][2:]] == [1, 0, 1, 1, 1, 0]
    assert all("~" not in cell for line in table.rows[1:] for cell in line)
    table = heterogeneous_table(slow_single(rows, 20.0))
    assert [cell.count("~") for cell in table.rows[0][2:]] == [0, 0, 0, 2, 0, 0]
    assert any("which needs" in note and "ms¹~" in note for note in table.notes)


def test_modes_mark_what_they_compare() -> None:
    rows = synthetic.clock_check()
    which = (rows["compute_mode"] == "hold") & (rows["method"] == "single")
    table = mode_comparison(rows.assign(fidelity=rows["fidelity"].where(~which, "degraded")))
    assert table.rows[0] == ["single", "20", "352.0¹~", "348.5¹", "334.4", "-1.0%¹~", "-5.0%¹~"]
    assert not any("~" in cell for line in table.rows[2:] for cell in line) and table.notes


def test_a_degraded_point_decides_nothing_about_the_front() -> None:
    rows = [synthetic.row("single", model="vit_tiny", hidden=96)]
    made = {"model": "vit_tiny", "hidden": 96, "codebook_size": 1024}
    rows += [synthetic.row("astra", groups, **made) for groups in (1, 8)]
    rows[2] |= {"latency_ms": 100.0, "fidelity": "degraded"}  # faster than G=1 and better
    evaluated = normalize(quality(), ACCURACY)
    table = trade_off_table(trade_offs(synthetic.frame(rows), evaluated), evaluated)
    assert {line[0]: line[-1] for line in table.rows} == {
        "uncompressed": "yes",
        "astra G=1": "no~",
        "astra G=8": "yes~",
    }
    assert "138.1¹" in [line[3] for line in table.rows] and "a degraded point decides it" in table.notes[-1]


def test_links_mark_what_comes_from_a_degraded_point() -> None:
    short = link_rows(size_bytes=1000, fidelity="degraded")
    default, shapers = fidelity_tables(links(link_rows(), short, link_rows("netem", fidelity="degraded")))
    assert default.rows[0][default.columns.index("small, ms")] == "+0.00~"
    assert [line[1] for line in shapers.rows] == ["1.00~", "1.00", "1.00~"] and "degraded" in shapers.notes[-1]
    found = headlines(
        links(*cliff(), link_rows(fidelity="degraded"), link_rows(pattern="incast_all", fidelity="degraded"))
    )
    assert [line.partition("(")[2].partition(")")[0] for line in found if "points are degraded)" in line] == [
        "1 of 3 points are degraded",
        "1 of 1 points are degraded",
    ]
