"""``make paper``: its parts exist and compose, run one after another, and the table ends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.paper.latency import paper_configs, reported_figures
from analysis.paper.table import NOT_MEASURED
from analysis.report import render, sections
from experiments import paper
from testbed.config.fields import choices
from testbed.config.load import load_config
from testbed.config.schema import AccuracyConfig
from testbed.results.run_folder import RunFolder
from testbed.results.schema import ACCURACY
from tests.analysis import synthetic
from tests.analysis.synthetic_quality import quality

CONFIGS = paper_configs()
QUICK_MINUTES = 15
DRAWERS = ("speedup_plot", "latency_breakdown", "devices_plot", "break_even_map", "accuracy_figures")


@pytest.mark.parametrize("words", [[], ["preset=quick"]])
@pytest.mark.parametrize("name", CONFIGS["config"])
def test_each_part_composes_and_is_named_as_its_file(name: str, words: list[str]) -> None:
    config = load_config([f"+experiment={name}", *words])
    assert config.experiment == name.replace("/", "_")
    if isinstance(config, AccuracyConfig) and words:  # trained once for all of them
        alike = load_config(["+experiment=paper/table1", *words])
        assert isinstance(alike, AccuracyConfig)
        for key in ("model", "data", "uncompressed", "training", "codebook_sizes", "seeds", "seed"):
            assert getattr(config, key) == getattr(alike, key), key


def test_every_experiment_of_the_folder_is_a_part() -> None:
    assert sorted(CONFIGS["config"]) == [name for name in choices("experiment") if name.startswith("paper/")]
    assert CONFIGS["quick_minutes"].sum() <= QUICK_MINUTES
    assert (CONFIGS["quick_minutes"] <= CONFIGS["minutes"]).all()


def test_every_table_has_an_experiment_or_a_reason() -> None:
    figures = reported_figures()
    able = {word for words in CONFIGS["figures"] for word in words.split()}
    assert able <= {*figures["table"], *figures["task"]}
    for _, figure in figures.iterrows():
        words = {figure["table"], figure["task"], figure["metric"], *str(figure["setting"]).split()}
        assert words & (able | set(NOT_MEASURED)), figure.to_dict()


Child = Callable[[list[str]], int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    """Runs main with a stand-in for the commands; returns the exit code and the experiments that were started."""
    for name in DRAWERS:
        monkeypatch.setattr(sections, name, lambda *_: [])
    monkeypatch.setattr(render, "CHROMIUM", ("no-such-browser",))

    def go(child: Child, *words: str) -> tuple[int, list[str]]:
        started = []

        def run_child(command: list[str], _environment: object, _target: object) -> int:
            assert command[1:3] == ["-m", "testbed.run"]
            started.append(command[3].removeprefix("+experiment="))
            return child(command[3:])

        monkeypatch.setattr(paper, "run_child", run_child)
        return paper.main([f"results_dir={tmp_path}", "network=loopback", *words]), started

    return go


def measure(words: list[str]) -> int:
    """Made-up rows where a part would leave measured ones."""
    folder: RunFolder = paper.results_folder(load_config(words))
    rows = quality() if folder.schema is ACCURACY else synthetic.sweep(bandwidths=(10.0, 20.0))
    rows.assign(experiment=folder.experiment).to_parquet(folder.parquet, index=False)
    return 0


def test_all_parts_run_one_after_another_and_the_table_ends_it(run, capsys, tmp_path) -> None:
    code, started = run(measure, "preset=quick")
    assert code == 0 and started == list(CONFIGS["config"])
    out = capsys.readouterr().out
    total = CONFIGS["quick_minutes"].sum()
    assert out.startswith(f"7 experiments, about {total} minutes on two cores, less what is done:\n")
    assert f"[1/7] paper/headline: {CONFIGS['what'][0]} (about 5 minutes, {total} minutes left)" in out
    assert "paper/table12: done after 0.0 minutes" in out
    table = out[out.index("Paper, ours, difference, why") :]
    assert "astra speedup over" in table and "2.64x" in table and "vit_tiny" in table
    assert "without ours: weights are not quantized here" in table
    page = (tmp_path / "paper" / "quick" / "report.html").read_text()
    assert "Paper, ours, difference, why" in page and "2.64x" in page


def test_a_part_that_fails_costs_no_other(run, capsys, tmp_path) -> None:
    code, started = run(lambda words: 1 if "devices" in words[0] else measure(words))
    assert code == 1 and len(started) == len(CONFIGS)
    captured = capsys.readouterr()
    assert "paper/devices: ended with exit code 1" in captured.out and "2.64x" in captured.out
    assert "not all of paper/devices could be measured: python -m testbed.run +experiment=paper/devices" in captured.err
    assert (tmp_path / "paper" / "full" / "report.html").is_file()


def test_a_signal_ends_it_at_once(run, capsys) -> None:
    code, started = run(lambda words: 130)
    assert code == 130 and started == ["paper/headline"]
    assert "the same command goes on from there" in capsys.readouterr().err


def test_nothing_measured_is_said(run, capsys) -> None:
    assert run(lambda words: 2)[0] == 1
    assert "none of 7 experiments has a result" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bandwidths=10", "error: bandwidths=10: unknown"),  # no key of experiments on quality
        ("preset=ci", "error: preset=ci: unknown; allowed: quick"),
        ("resume=maybe", "error: resume=maybe: must be true or false"),
    ],
)
def test_bad_input_ends_it_before_anything_is_started(run, capsys, tmp_path, words: str, message: str) -> None:
    code, started = run(measure, words)
    assert code == 2 and not started and not list(tmp_path.iterdir())
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1
