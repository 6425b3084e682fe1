"""Rows that say ok and have no number: read as points without a result; what cannot be compared is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.accuracy import accuracy_figures, accuracy_tables, results
from analysis.compare import main as compare_main
from analysis.links import fidelity_tables
from analysis.load import ResultsError, load_rows, normalize
from analysis.pareto import trade_off_plot, trade_offs
from analysis.report.headlines import headlines
from analysis.report.terminal import tables
from analysis.runs import read_run
from testbed.results.schema import ACCURACY
from tests.analysis import synthetic
from tests.analysis.synthetic_quality import quality
from tests.analysis.test_incast import cliff
from tests.analysis.test_links import frame as links
from tests.analysis.test_links import rows as link_rows

KINDS = {"latency_ms": synthetic.sweep(bandwidths=(10.0,)), "value": quality(), "time_ms": links(link_rows(), *cliff())}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_row_without_its_result_has_failed(name: str, suffix: str, tmp_path: Path) -> None:
    rows = KINDS[name].astype({name: float})
    path = tmp_path / f"results.{suffix}"
    write = (lambda frame: frame.to_csv(path, index=False)) if suffix == "csv" else lambda frame: frame.to_parquet(path)
    write(rows.assign(**{name: rows[name].where(rows.index != 0, np.nan)}))
    first = load_rows(tmp_path).iloc[0]
    assert (first["status"], first["error"]) == ("failed", f"its {name} is not a number")
    assert f"1 of {len(rows)} rows are left out: their {name} is not a number" in read_run(tmp_path).notes
    write(rows.assign(**{name: np.nan}))
    run = read_run(tmp_path)
    assert f"{len(rows)} of {len(rows)} rows are left out: their {name} is not a number" in run.notes
    assert "no point has a result; the table of points without a result shows the errors" in run.notes
    assert tables(run.frame)[-1].title == "Points without a result"
    headlines(run.frame)
    assert compare_main([str(tmp_path), str(tmp_path)]) == 0


@pytest.mark.parametrize("name", KINDS)
def test_an_infinite_result_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KINDS[name].astype({name: float}).assign(**{name: np.inf}).to_parquet(tmp_path / "results.parquet")
    with pytest.raises(ResultsError, match=f"results.parquet: {name}=inf in row 0; allowed: .* to 1e\\+15"):
        load_rows(tmp_path)
    assert compare_main([str(tmp_path), str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compare: ")


def test_changes_that_are_no_numbers_are_not_compared() -> None:
    rows = normalize(quality(), ACCURACY)
    assert len(headlines(rows.assign(change=np.nan))) == 1  # the uncompressed baseline, and nothing else
    one = rows.assign(change=rows["change"].where(rows["groups"] != 8))
    assert not any("G=8" in line for line in headlines(one)) and any("G=1" in line for line in headlines(one))


def test_variants_without_bits_are_in_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path: path.write_bytes(b""))
    rows = normalize(quality(), ACCURACY)
    assert accuracy_figures(rows.assign(bits_per_token=np.nan), tmp_path) == []
    assert accuracy_figures(rows.assign(bits_per_token=rows["bits_per_token"].where(rows["groups"] == 1)), tmp_path)
    (table,) = accuracy_tables(rows.assign(bits_per_token=np.nan))
    assert {line[2] for line in table.rows} == {"-"} and len(headlines(rows.assign(bits_per_token=np.nan))) == 1


def test_an_interval_without_its_value_has_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path: path.write_bytes(b""))
    made = {"model": "vit_tiny", "hidden": 96}
    latency = synthetic.frame([synthetic.row("single", **made), synthetic.row("astra", 1, **made)])
    for low in (np.nan, 50.0):
        evaluated = normalize(quality(), ACCURACY).assign(change_low=low)
        assert trade_off_plot(trade_offs(latency, evaluated), latency, evaluated, tmp_path)


def test_links_without_an_ideal_time_have_no_ratio() -> None:
    rows = links(link_rows(), *cliff()).assign(ideal_ms=np.nan, payload_ms=np.nan)
    (table,) = fidelity_tables(rows)
    assert table.rows[0][2] == "-" and table.rows[0][table.columns.index("small, ms")] == "-"
    assert headlines(rows) == []
    half = links(link_rows(ideal_ms=None), link_rows(size_bytes=200_000, times_ms=(20.0,)))
    assert any("take 2.00 times their ideal time at worst" in line for line in headlines(half))


def test_only_a_baseline_and_nothing_else() -> None:
    rows = normalize(quality().head(1), ACCURACY)
    assert len(results(rows)) == 1 and len(accuracy_tables(rows)) == 1 and len(headlines(rows)) == 1
    assert headlines(pd.DataFrame(rows.iloc[:0])) == []
