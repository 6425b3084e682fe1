from __future__ import annotations

from pathlib import Path

import pytest

from analysis.incast import incast_figures, incasts, link_tables
from analysis.report.headlines import headlines
from analysis.report.write import write_report
from tests.analysis.test_links import frame, rows


def cliff() -> list[list]:
    """Simultaneously, a short queue costs 90% of the goodput; one by one, nothing. Nothing was measured."""
    made = []
    for queue, time_ms, drops in ((8.0, 100.0, 90), (64.0, 10.0, 0)):
        made.append(rows(pattern="incast_all", times_ms=(time_ms, time_ms), queue_kb=queue, drops=drops))
        made.append(rows(pattern="incast_ordered", times_ms=(10.0,), queue_kb=queue))
    return made


def test_the_table_has_both_orders_beside_each_other() -> None:
    (table,) = link_tables(frame(*cliff()))
    assert table.rows == [
        ["3 x 100 KB, 100 Mbps", "8", *("10.00", "10%", "90 / 2"), *("1.00¹", "95%¹", "0 / 2")],
        ["3 x 100 KB, 100 Mbps", "64", *("1.00", "95%", "0 / 2"), *("1.00¹", "95%¹", "0 / 2")],
    ]


def test_incast_is_left_out_of_the_table_of_links() -> None:
    both = frame(*cliff(), rows(queue_kb=64.0))
    links, *others = link_tables(both)[1:]
    assert links.rows[0][2] == "1.00" and not others
    assert len(incasts(both)) == 4


def test_headlines_name_the_shortest_queue_that_is_enough() -> None:
    said = headlines(frame(*cliff()))
    text = "3 devices send 100,000 B each to one device at 100 Mbps, "
    assert said == [
        f"{text}simultaneously: queues of 64 KB and more reach 80% of the rate; the shortest queue, 8 KB, reaches 10%.",
        f"{text}one by one: queues of 8 KB and more reach 80% of the rate; the shortest queue, 8 KB, reaches 95%.",
    ]


@pytest.mark.parametrize("orders", [("incast_all",), ("incast_all", "incast_ordered")])
def test_the_report_shows_it(tmp_path: Path, orders: tuple[str, ...]) -> None:
    shown = frame(*cliff())
    shown = shown[shown["pattern"].isin(orders)]
    shown.to_csv(tmp_path / "results.csv", index=False)
    assert {"incast.png", "incast.pdf"} <= {path.name for path in write_report(tmp_path)}
    assert "Incast: many devices send to one" in (tmp_path / "report" / "tables.md").read_text()


def test_without_incast_nothing_is_drawn(tmp_path: Path) -> None:
    assert incast_figures(frame(rows()), tmp_path) == []
