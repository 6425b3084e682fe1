from __future__ import annotations

from analysis.scaling import devices_plot, tokens_plot, tokens_tables
from tests.analysis import synthetic


def rows(**changes) -> list[dict]:
    return [synthetic.row("single", **changes | {"devices": 1}), synthetic.row("astra", 1, **changes)]


def test_figures_need_two_numbers_of_what_they_show(tmp_path):
    two_devices = synthetic.frame(rows(devices=2) + rows(devices=4))
    two_tokens = synthetic.frame(rows(tokens=256) + rows(tokens=1024))
    assert [path.name for path in devices_plot(two_devices, tmp_path)] == ["devices.png", "devices.pdf"]
    assert [path.name for path in tokens_plot(two_tokens, tmp_path)] == ["tokens.png", "tokens.pdf"]
    assert devices_plot(two_tokens, tmp_path) == tokens_plot(two_devices, tmp_path) == []


def test_a_column_for_each_number_of_tokens():
    made = rows(tokens=256) + rows(tokens=1024, fidelity="degraded") + rows(tokens=1024, bandwidth_mbps=20.0)
    latency, speedup = tokens_tables(synthetic.frame(made))
    assert latency.title == "Latency (ms, median over repeats) by number of tokens"
    assert speedup.columns == ["method", "devices", "Mbps", "256 tokens", "1024 tokens"]
    assert [row[:3] for row in speedup.rows] == [
        *(["single", "1", "10"], ["single", "1", "20"]),
        *(["astra G=1", "4", "10"], ["astra G=1", "4", "20"]),
    ]
    assert latency.rows[2][3:] == ["138.1¹", "138.1¹~"] and latency.rows[3][3] == "-"
    assert [note[0] for note in latency.notes] == ["¹", "~"]
    assert tokens_tables(synthetic.sweep(bandwidths=(10.0,))) == []
