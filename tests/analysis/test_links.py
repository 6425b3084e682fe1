from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.links import fidelity_figures, fidelity_tables, messages
from analysis.report.headlines import headlines
from analysis.report.write import write_report
from testbed.results.schema import FIDELITY


def rows(
    shaper: str = "tbf", size_bytes: int = 100_000, times_ms: tuple[float, ...] = (10.0, 10.0), **changes: Any
) -> list:
    """Repeats of one made-up point whose ideal is 10 ms. Nothing here was measured."""
    fixed = {
        **{"experiment": "fidelity", "signature": "0", "pattern": "one_way", "shaper": shaper, "devices": 4},
        **{"rate_mbps": 100.0, "size_bytes": size_bytes, "topology": "star", "network": "mininet", "time_scale": 1.0},
        **{"ideal_ms": 10.0, "payload_ms": 9.5, "rate_error_pct": -1.0, "wire_bytes": 1, "retransmits": 2, "drops": 0},
        **{"burst_credit_bytes": 0, "needed_time_scale": 1, "fidelity": "ok", "fidelity_note": "", "status": "ok"},
        "error": "",
    }
    return [fixed | {"repeat": repeat, "time_ms": time} | changes for repeat, time in enumerate(times_ms)]


def frame(*points: list) -> pd.DataFrame:
    return pd.DataFrame([row for point in points for row in point], columns=list(FIDELITY.columns))


def test_medians_and_spread() -> None:
    (point,) = messages(frame(rows(times_ms=(10.0, 11.0, 15.0)))).to_dict(orient="records")
    assert (point["time_ms"], point["ratio"], point["extra_ms"]) == (11.0, 1.1, 1.0)
    assert point["spread_pct"] == pytest.approx(500 / 11)


def test_the_table_of_links_shows_the_worst_point_and_the_needed_time_scale() -> None:
    table = fidelity_tables(
        frame(
            rows(),
            rows(size_bytes=1_000_000, times_ms=(13.0,), fidelity="degraded", needed_time_scale=4),
            rows(size_bytes=320, times_ms=(10.5,)),
            rows(pattern="all_reduce", size_bytes=10_000, times_ms=(12.5,)),  # parts of 2,500 bytes are small
        )
    )[0]
    (cells,) = table.rows
    assert dict(zip(table.columns, cells, strict=True)) == {
        **{"links": "4 x 100 Mbps", "rate error": "-1.0%", "one way": "1.30¹~", "both ways": "-", "all-gather": "-"},
        **{
            "all-reduce": "-",
            "small, ms": "+2.50¹",
            "spread": "0%",
            "resent": "8",
            "dropped": "0",
            "needed scale": "4",
        },
    }


def test_shapers_stand_side_by_side_and_a_missing_one_is_named() -> None:
    skipped = rows("netem", times_ms=(0.0,), status="skipped", error="this kernel has no netem", time_ms=None)
    _, shapers, lost = fidelity_tables(
        frame(rows(), rows("tclink", times_ms=(0.6,), burst_credit_bytes=15360), skipped)
    )
    assert shapers.rows == [["tbf, 100,000 B", "1.00", "0"], ["tclink, 100,000 B", "0.06¹", "15,360"]]
    assert lost.rows == [["netem", "skipped", "1", "this kernel has no netem"]]


def test_the_report_of_a_folder(tmp_path: Path) -> None:
    both = frame(rows(times_ms=(10.0, 10.2)), rows("tclink", times_ms=(0.6,)))
    both.to_csv(tmp_path / "results.csv", index=False)
    names = {path.name for path in write_report(tmp_path)}
    assert names == {"report.html", "tables.md", "tables.tex", "links.png", "links.pdf", "shapers.png", "shapers.pdf"}
    assert "Links of shaper tbf: time divided by the ideal time" in (tmp_path / "report" / "tables.md").read_text()
    alone = frame(rows())
    assert {path.stem for path in fidelity_figures(alone, tmp_path)} == {"links"}  # nothing to compare with


def test_headlines_say_the_same_as_the_table() -> None:
    slow = rows(times_ms=(13.0,), needed_time_scale=4) + rows(size_bytes=320, times_ms=(90.0,))
    parts = rows(size_bytes=10_000, pattern="all_reduce", times_ms=(40.0,))  # 2,500 B each: not large
    said = headlines(frame(slow, parts, rows(rate_mbps=10.0, times_ms=(10.5,))))
    text = (
        "4 devices at {} Mbps: messages of 10,000 B and more take {} times their ideal time at worst; {} is enough for "
    )
    text += "the tolerance (10% of the ideal time plus a small time for each message)."
    assert said == [text.format(10, "1.05", "real time"), text.format(100, "1.30", "time_scale=4")]
