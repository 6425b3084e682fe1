"""All attempts at a point stay in the files, and stolen CPU time alone decides which one is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.load import load_rows
from analysis.points import points
from testbed.results.attempts import NOT_KEPT, STEAL_LIMIT_PCT, kept, with_reasons
from testbed.results.column import STAMPED
from testbed.results.run_folder import RunFolder
from testbed.results.schema import ACCURACY, LATENCY
from tests.analysis.synthetic_quality import quality_row
from tests.results.test_run_folder import row as any_row


def row(method: str = "single", **values: Any) -> dict[str, Any]:
    return any_row(method, **{"compute_mode": "replay", **values})


POINT = LATENCY.key(row())
LOST = {name: row()[name] for name in LATENCY.keys} | {"status": "failed", "error": "rank 1 is gone"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, "smoke", "abc")


def attempts(folder: RunFolder) -> dict[int, str]:
    """Number of each attempt -> why it is kept or not."""
    rows = folder.rows(every_attempt=True)
    return {int(number): str(why) for number, why in zip(rows["attempt"], rows["kept_because"], strict=True)}


def test_a_point_measured_once_is_its_only_attempt(folder: RunFolder) -> None:
    made = [row(repeat=0), row(repeat=1)]
    assert folder.append(made) == made and attempts(folder) == {0: "only attempt"}


def test_less_stolen_time_is_kept_and_the_rest_stays_in_the_files(folder: RunFolder) -> None:
    folder.append([row(latency_ms=90.0, steal_pct=30.0, fidelity="degraded")])
    assert folder.append([row(latency_ms=50.0, steal_pct=40.0)]) == []  # faster, but with more stolen time
    assert folder.append([row(latency_ms=95.0, steal_pct=9.0, fidelity="degraded")])
    assert attempts(folder) == {
        0: "not kept: more stolen time",
        1: "not kept: more stolen time",
        2: "lowest stolen time",
    }
    assert folder.rows()["latency_ms"].tolist() == [95.0]
    assert pd.read_csv(folder.csv)["latency_ms"].tolist() == [90.0, 50.0, 95.0]
    assert len(load_rows(folder.path)) == 1
    assert load_rows(folder.path, every_attempt=True)["attempt"].tolist() == [0, 1, 2]


def test_little_stolen_time_is_no_reason_to_prefer_a_later_attempt(folder: RunFolder) -> None:
    """A repeat of a degraded point cannot select agreement with the cost model."""
    off = {"fidelity": "degraded", "residual_pct": 40.0, "fidelity_note": "latency off the cost model by +40%"}
    folder.append([row(latency_ms=140.0, steal_pct=4.9, **off)])
    assert folder.completed(retry_failed=False, retry_degraded=True) == set()
    assert folder.append([row(latency_ms=100.0, steal_pct=0.0, residual_pct=0.0)]) == []
    assert folder.rows()["latency_ms"].tolist() == [140.0]
    assert attempts(folder) == {
        0: "first attempt with so little stolen time",
        1: "not kept: later, and no less stolen time",
    }


def test_time_that_other_programs_took_is_stolen_too(folder: RunFolder) -> None:
    folder.append([row(latency_ms=150.0, foreign_cpu_pct=40.0, repeat=0), row(foreign_cpu_pct=0.0, repeat=1)])
    assert folder.append([row(latency_ms=160.0, foreign_cpu_pct=9.0)])  # the mean counts, and little is none
    assert folder.append([row(latency_ms=100.0, foreign_cpu_pct=8.0)]) == []
    assert folder.rows()["latency_ms"].tolist() == [160.0]


MEASURED = ("latency_ms", "residual_pct", "overruns", "wire_bytes", "max_abs_err", "wait_ms")
ATTEMPT = st.fixed_dictionaries(
    {name: st.integers(1, 1000) for name in MEASURED}
    | {"steal_pct": st.sampled_from([0.0, 3.0, 5.0, 7.0, 20.0]), "fidelity": st.sampled_from(["ok", "degraded"])}
)


@given(st.lists(ATTEMPT, min_size=1, max_size=5), st.lists(ATTEMPT, min_size=5, max_size=5))
def test_nothing_that_was_measured_decides(made: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """The same stolen times with any other measurements keep the same attempt, and always exactly one."""
    changed = [new | {"steal_pct": old["steal_pct"]} for old, new in zip(made, other, strict=False)]
    frames = [pd.DataFrame(rows).assign(attempt=range(len(rows)), status="ok") for rows in (made, changed)]
    first, second = (with_reasons(frame, [0] * len(frame))["kept_because"].tolist() for frame in frames)
    assert first == second and sum(not why.startswith(NOT_KEPT) for why in first) == 1
    stolen = [0.0 if each["steal_pct"] <= STEAL_LIMIT_PCT else each["steal_pct"] for each in made]
    assert not first[stolen.index(min(stolen))].startswith(NOT_KEPT)


def test_a_failure_loses_to_a_result_whatever_the_stolen_time(folder: RunFolder) -> None:
    folder.append([row(repeat=0, steal_pct=1.0), row(repeat=1, steal_pct=1.0, status="failed", error="too few bytes")])
    assert folder.points() == {POINT: False}
    assert folder.append([row(repeat=0, steal_pct=30.0)])
    assert folder.points() == {POINT: True} and len(folder.rows()) == 1
    assert attempts(folder) == {0: "not kept: failed", 1: "only attempt without a failure"}
    assert folder.append([LOST]) == []  # and does not replace it later
    assert folder.points() == {POINT: True} and len(folder.rows(every_attempt=True)) == 4


def test_attempts_of_one_measurement_are_numbered_on(folder: RunFolder) -> None:
    folder.append([row(steal_pct=30.0, latency_ms=1.0)])
    again = [row(steal_pct=steal, latency_ms=steal, attempt=n) for n, steal in enumerate((50.0, 20.0, 40.0))]
    assert folder.append(again) == [again[1]]
    assert folder.rows(every_attempt=True)["attempt"].tolist() == [0, 1, 2, 3]
    assert folder.rows()["latency_ms"].tolist() == [20.0]


def test_each_compute_mode_has_attempts_of_its_own(folder: RunFolder) -> None:
    hold = [row(compute_mode="hold", steal_pct=steal, attempt=n) for n, steal in enumerate((30.0, 2.0))]
    folder.append([*hold, row(compute_mode="replay", steal_pct=1.0)])
    rows = folder.rows()
    assert rows["compute_mode"].tolist() == ["hold", "replay"] and rows["attempt"].tolist() == [1, 0]


def test_speed_ups_are_over_the_kept_single(folder: RunFolder) -> None:
    folder.append([row(latency_ms=100.0, steal_pct=50.0, fidelity="degraded")])
    folder.append([row("tensor", latency_ms=50.0)])
    assert folder.rows().set_index("method")["speedup"]["tensor"] == 2.0
    folder.append([row(latency_ms=150.0, steal_pct=0.0)])
    rows = folder.rows(every_attempt=True)
    assert rows["speedup"].fillna(-1).tolist() == [-1.0, 3.0, 1.0]  # what is not kept has none
    assert rows["speedup_fidelity"].fillna("-").tolist() == ["-", "ok", "ok"]
    table = points(load_rows(folder.path)).set_index("method")
    assert table["repeats"].tolist() == [1, 1] and not table.loc["tensor", "speedup_degraded"]


def test_a_reason_of_this_run_does_not_degrade_an_attempt_of_an_earlier_one(folder: RunFolder) -> None:
    folder.append([row(fidelity="ok", fidelity_note="")])
    now = RunFolder(folder.results_dir, "smoke", "abc")
    now.append([row(fidelity="ok", fidelity_note="")])
    now.degrade({POINT: "after the last point: 70 foreign bytes"})
    assert now.rows(every_attempt=True)["fidelity"].tolist() == ["ok", "degraded"]
    assert now.rows()["fidelity"].tolist() == ["ok"]


def test_rows_of_an_older_version_are_the_only_attempt(folder: RunFolder) -> None:
    folder.append([row(), row("tensor")])
    older = folder.rows().drop(columns=["attempt", "kept_because"])
    older.to_parquet(folder.parquet, index=False)
    rows = load_rows(folder.path)
    assert rows["attempt"].tolist() == [0, 0] and set(rows["kept_because"]) == {"only attempt"}
    assert kept(older).all()


def test_a_failed_variant_that_is_trained_again_keeps_both(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "accuracy_vit", "abc", ACCURACY)
    stamped = {column.name for column in STAMPED}
    made = {name: value for name, value in quality_row().items() if name not in stamped}
    lost = {name: made[name] for name in ACCURACY.keys} | {"status": "failed", "error": "diverged"}
    folder.append([lost])
    folder.append([made])
    assert folder.rows()["status"].tolist() == ["ok"] and folder.completed(retry_failed=True)
    assert folder.rows(every_attempt=True)["error"].tolist() == ["diverged", ""]
