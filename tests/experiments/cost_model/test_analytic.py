"""network=analytic: grids from formulas, by this project's and the paper's cost model, never shown as measured."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.load import load_rows
from analysis.paper.accounting import accounting_table
from analysis.report.terminal import summarize
from experiments import latency
from experiments.cost_model.analytic import analytic_row
from experiments.cost_model.paper_accounting import paper_bits, paper_compute_s
from experiments.cost_model.point_costs import PointCosts
from testbed import run
from testbed.config.load import load_config
from testbed.config.schema import LatencyConfig
from testbed.device.spec import Device
from testbed.grid import points
from testbed.methods import load_method
from testbed.models.shape import ModelShape
from testbed.results.run_folder import RunFolder
from tests.methods.test_formulas import PAPER, U_BITS

DEVICE = Device(load_method("single").macs(PAPER, 0, 1) / 0.350)


def paper_ms(name: str, mbps: float, world: int = 4, **settings: Any) -> float:
    method = load_method(name, **settings)
    bits = paper_bits(method, PAPER, world)
    assert bits is not None
    seconds = paper_compute_s(method, PAPER, [DEVICE] * world) + bits / (mbps * 1e6)
    assert seconds is not None
    return 1e3 * seconds


def test_the_papers_accounting_gives_the_papers_figures() -> None:
    astra = paper_ms("astra", 10)
    assert paper_ms("single", 10, world=1) == pytest.approx(350)
    assert 350 / astra == pytest.approx(2.64, rel=0.002)
    assert 350 / paper_ms("astra", 20) == pytest.approx(2.74, rel=0.002)
    assert 350 / paper_ms("astra", 20, groups=32) == pytest.approx(1.27, rel=0.02)
    assert paper_ms("block", 10, blocks=1) / astra == pytest.approx(15.25, rel=0.002)
    assert paper_ms("sequence", 10) / astra == pytest.approx(171.82, rel=0.002)
    assert paper_ms("tensor", 10) / astra == pytest.approx(342.7, rel=0.002)


@given(st.integers(1, 32), st.integers(2, 4096))
def test_a_ring_all_reduce_moves_twice_what_the_paper_counts(world: int, tokens: int) -> None:
    shape = replace(PAPER, tokens=tokens, heads=world, hidden=world * 64, mlp_hidden=world * 256)
    real = sum(load_method("tensor").received_bits(shape, world))
    assert paper_bits(load_method("tensor"), shape, world) == pytest.approx(real / world / 2, rel=1e-6, abs=100)
    sequence = sum(load_method("sequence").received_bits(shape, world))
    assert paper_bits(load_method("sequence"), shape, world) == pytest.approx(sequence / world, rel=1e-6, abs=400)


def test_volumes_are_in_the_papers_unit() -> None:
    assert paper_bits(load_method("tensor"), PAPER, 4) == 24 * U_BITS
    assert paper_bits(load_method("block", blocks=3), PAPER, 4) == 3 * U_BITS
    assert paper_bits(load_method("astra"), PAPER, 4) == 12 * 768 * 10
    for other in ("ring", "prism", "galaxy", "megatron_sp", "pipeline"):
        assert paper_bits(load_method(other), PAPER, 4) is None
    for name, variant in (
        ("tensor", {"sync": "star"}),
        ("sequence", {"gather": "kv"}),
        ("astra", {"optimizations": "lut"}),
    ):
        assert paper_bits(load_method(name, **variant), PAPER, 4) is None


@cache
def grid(*words: str) -> LatencyConfig:
    config = load_config(["+experiment=smoke", "network=analytic", *words])
    assert isinstance(config, LatencyConfig)
    return config


@settings(max_examples=40)
@given(st.integers(1, 64), st.sampled_from([64, 256, 1024]), st.floats(1, 1000))
def test_latency_is_compute_and_what_of_the_transfer_is_not_hidden(devices: int, tokens: int, mbps: float) -> None:
    changes = {"devices": [devices], "tokens": [tokens], "bandwidths": [mbps]}
    config = replace(grid("methods=[single,sequence,ring,astra]", "astra.groups=[1,32]"), **changes)
    for point in points(config):
        row = analytic_row(PointCosts(point, config))
        shape, wire_ms = config.model.shape(tokens), row["wire_floor_ms"]
        link_ms = 1e3 * point.load().wire_bits(shape, point.devices) / (mbps * 1e6)  # of the device that sends most
        assert row["compute_ms"] + row["wire_ms"] == pytest.approx(row["latency_ms"])
        # Shares differ by a token: who has more sends more than anybody receives.
        assert -1e-9 <= row["wire_ms"] <= wire_ms * (1 + devices / tokens)
        assert row["payload_bytes"] == row["formula_bytes"] and (row["messages"] > 0) == (wire_ms > 0)
        if point.method == "sequence":
            assert row["wire_ms"] == pytest.approx(link_ms)


def test_a_run_takes_no_cluster_and_says_what_it_is(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    words = ["+experiment=device_sweep", "network=analytic", "devices=[2,3,16]", "bandwidths=[10,1000]"]
    monkeypatch.setattr(run, "_measure", lambda config, folder: latency.run(config, config.network.backend, folder))
    assert run.main([*words, f"results_dir={tmp_path}", "astra.optimizations=paper"]) == 0
    assert "the cost model" in capsys.readouterr().out
    (folder,) = (tmp_path / "device_sweep").iterdir()
    rows = load_rows(folder)
    assert set(rows["network"]) == set(rows["compute_mode"]) == {"analytic", ""}  # "": what cannot be split so
    done = rows[rows["status"] == "ok"]
    assert done["verified"].isna().all() and done["wire_bytes"].isna().all() and (done["speedup"] > 0).all()
    assert set(done["devices"]) == {1, 2, 3, 16}
    table = accounting_table(rows)
    first = {row[0]: row for row in table.rows}["tensor fp32 N=2"]
    paper_mb, real_mb = (float(cell.replace(",", "")) for cell in first[1:3])
    assert real_mb / paper_mb == pytest.approx(2, rel=0.01)
    assert run.main([*words, f"results_dir={tmp_path}", "astra.optimizations=paper"]) == 0
    assert "0 to measure" in capsys.readouterr().out


def test_nothing_of_it_looks_measured(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    for name in ("speedup_plot", "latency_breakdown", "devices_plot", "tokens_plot", "break_even_map"):
        monkeypatch.setattr(f"analysis.report.sections.{name}", lambda *_: [])
    config = grid("tokens=[64,256]", "results_dir=x", "bandwidths=[10,20,1000]", "astra.optimizations=paper")
    folder = RunFolder(tmp_path, "smoke", "abc")
    assert latency.run(config, "analytic", folder) == 0
    capsys.readouterr()
    summarize(folder.path)
    page = capsys.readouterr().out + (folder.path / "report" / "report.html").read_text()
    assert "median over repeats" not in page and "Lowest bandwidth (Mbps) that beats one device, measured" not in page
    for text in ("Nothing was measured: every number here", "Latency (ms, by the cost model: nothing was measured)"):
        assert text in page
    assert "Lowest bandwidth (Mbps) that beats one device, by the cost model: nothing was measured" in page


def test_a_large_grid_takes_no_time() -> None:
    config = grid("devices=[2,4,8,16,32,64]", "bandwidths=[10,100,1000]", "tokens=4096", "astra.optimizations=paper")
    begin = time.process_time()
    rows = [
        analytic_row(PointCosts(point, config))
        for point in points(config)
        if not impossible(point, config.model.shape(4096))
    ]
    assert len(rows) > 80
    assert time.process_time() - begin < 0.05 * len(rows)
    assert all(math.isfinite(row["latency_ms"]) for row in rows)


def impossible(point: Any, shape: ModelShape) -> bool:
    uneven = point.method == "tensor" and shape.heads % point.devices > 0
    return uneven or (point.method == "pipeline" and point.devices > shape.layers)
