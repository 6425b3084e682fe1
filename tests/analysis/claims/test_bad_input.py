"""A file of claims that is wrong, and rows that are: one line that names the place and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.claims import __main__ as command
from analysis.claims.conditions import points_of, select
from analysis.claims.document import ClaimsError, load_document
from analysis.claims.evaluate import Evaluation, Quoted
from analysis.claims.pages import EARLIER, age, page_block, section, sentence, with_blocks
from analysis.claims.runs_list import runs_list
from analysis.claims.text import wrapped, written
from analysis.load import ResultsError, load_rows
from testbed.results.kept_runs import KeptRun
from testbed.results.measurement_hash import measurement_hash
from tests.analysis import synthetic

CONFIG = {"runner": "latency", "methods": ["single", "astra"]}
CLAIM: dict[str, Any] = {
    "id": "C1",
    "title": "Made up",
    "sentence": "ASTRA is {fast:.2f} times as fast",
    "command": "make smoke",
    "expect": "this:\n\n{table all}",
    "tolerance": "none",
    "minutes": 1,
    "memory": "4 GiB",
    "rows": ["made_up"],
    "values": {
        "fast": {"where": {"method": "astra", "groups": 1, "bandwidth_mbps": 10}, "column": "speedup"},
        "slow": {"where": {"method": "astra", "groups": 32, "bandwidth_mbps": 10}, "column": "speedup"},
    },
    "holds": [{"increasing": ["slow", "fast"]}],
    "tables": {
        "all": {
            "column": "latency_ms",
            "rows": [{"label": "one device", "where": {"method": "single"}}],
            "columns": [{"heading": "10 Mbps", "where": {"bandwidth_mbps": 10}}],
        }
    },
}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, KeptRun]:
    """A kept run with made-up rows of today's code."""
    folder = tmp_path / "made_up"
    folder.mkdir()
    synthetic.sweep().to_csv(folder / "results.csv", index=False)
    sign(folder, measurement_hash(CONFIG))
    return {"made_up": KeptRun("made_up", "latency", str(folder), ("+experiment=smoke",), 1.0)}


def sign(folder: Path, value: str | None) -> None:
    entry = {"started": "2026-10-01T12:00:00+00:00", "config": CONFIG, "measurement_hash": value}
    (folder / "manifest.json").write_text(json.dumps({"runs": [entry]}))


def read(tmp_path: Path, runs: dict[str, KeptRun], *claims: dict[str, Any], **other: Any) -> Evaluation:
    data = {"claims": list(claims), "artifact": {"before": "A", "after": "B"}, "pages": {}} | other
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps(data))  # JSON is YAML
    return Evaluation(load_document(path, runs))


def test_rows_of_today_have_no_mark_and_older_ones_have(tmp_path: Path, runs: dict[str, KeptRun]) -> None:
    def made() -> tuple[str, ...]:
        evaluation = read(tmp_path, runs, CLAIM)
        claim = evaluation.document.claims["C1"]
        block = page_block("{C1.fast:.2f}", evaluation, "README.md")
        return (
            block,
            " ".join(section(claim, evaluation).split()),
            age(claim, evaluation),
            " ".join(runs_list(evaluation, "latency").split()),
        )

    assert not any("2026-10-01" in text or EARLIER in text for text in made())
    for value in ("0123456789", None):
        sign(runs["made_up"].path, value)
        block, text, shown, listed = made()
        assert block.endswith(f"*Rows {EARLIER}: `made_up` (2026-10-01).*")
        assert f"({EARLIER}, 2026-10-01)" in text and f"Rows {EARLIER} (2026-10-01)" in listed
        assert shown == "earlier, 2026-10-01"
    for manifest in ("", "[]", '{"runs": []}', '{"runs": [3]}', '{"runs": [{"measurement_hash": null}]}'):
        (runs["made_up"].path / "manifest.json").write_text(manifest)
        assert made()[2] == "earlier, unknown date", manifest


def test_strict_refuses_older_rows(
    tmp_path: Path, runs: dict[str, KeptRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def go(*words: str, **changes: Any) -> int:
        found = read(tmp_path, runs, {**CLAIM, **changes}).document
        monkeypatch.setattr(command, "load_document", lambda: found)
        return command.main(words)

    assert go() == go("--strict") == 0
    sign(runs["made_up"].path, "0123456789")
    assert go() == 0 and not capsys.readouterr().err
    assert go("--strict") == 1
    assert "rows of an earlier revision: made_up (2026-10-01)" in capsys.readouterr().err
    assert go(holds=[{"increasing": ["fast", "slow"]}]) == 1
    assert "C1 does not hold: not increasing: fast, slow" in capsys.readouterr().err
    with pytest.raises(ClaimsError, match="--strikt: unknown; did you mean --strict"):
        command.main(["--strikt"])


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"every": {"speedup": "< 1"}, "among": {"method": "tensor"}}, True),
        ({"every": {"speedup": "> 1"}, "among": {"method": ["tensor", "astra"]}}, False),
        ({"some": {"speedup": "> 1"}, "among": {"method": ["tensor", "astra"]}}, True),
        ({"none": {"speedup": "> 1"}, "among": {"method": "tensor"}}, True),
        ({"none": {"speedup": "> 1"}, "among": {"method": "not tensor"}}, False),
        ({"every": {"bandwidth_mbps": {"from": 10, "to": 20}}, "among": {"bandwidth_mbps": {"to": 20}}}, True),
        ({"every": {"verified": True}}, True),
        ({"value": "fast", "from": 1}, True),
        ({"value": "fast", "to": 1}, False),
        ({"increasing": ["slow", "fast"]}, True),
        ({"increasing": ["fast", "fast"]}, False),
    ],
)
def test_quantifiers(condition: dict[str, Any], holds: bool, tmp_path: Path, runs: dict[str, KeptRun]) -> None:
    evaluation = read(tmp_path, runs, {**CLAIM, "holds": [condition]})
    assert (evaluation.broken(evaluation.document.claims["C1"]) == []) == holds


def test_figures_are_medians_over_repeats(tmp_path: Path, runs: dict[str, KeptRun]) -> None:
    rows = [synthetic.row("single", repeat=n, latency_ms=latency) for n, latency in enumerate((100.0, 101.0, 400.0))]
    rows += [synthetic.row("astra", 1, latency_ms=50.0, fidelity="degraded")]
    synthetic.frame(rows).to_csv(runs["made_up"].path / "results.csv", index=False)
    single = {"where": {"method": "single"}, "column": "latency_ms"}
    values = {
        "one": single,
        "parts": {**single, "over": "latency_ms"},
        "astra": {"where": {"method": "astra"}, "column": "latency_ms"},
        "ratio": {"ratio": ["one", "astra"]},
        "difference": {"difference": ["one", "astra"]},
        "points": {"take": "count"},
        "most": {"column": "latency_ms", "take": "max"},
    }
    evaluation = read(tmp_path, runs, {**CLAIM, "values": values, "holds": [{"value": "one", "from": 0}]})
    found = evaluation.values(evaluation.document.claims["C1"])
    numbers = {name: value.number for name, value in found.items()}
    assert numbers == {"one": 101, "parts": 1, "astra": 50, "ratio": 2.02, "difference": 51, "points": 2, "most": 101}
    assert {name for name, value in found.items() if value.degraded} == {"astra", "ratio", "difference", "most"}
    assert written(found["astra"], ".1f") == "50.0~"


def test_a_difference_from_the_same_point_in_another_mode(tmp_path: Path, runs: dict[str, KeptRun]) -> None:
    modes = {"hold": 100.0, "replay": 101.0, "analytic": 95.0}
    rows = [
        synthetic.row("astra", groups, compute_mode=mode, latency_ms=latency * groups)
        for groups in (1, 2)
        for mode, latency in modes.items()
    ]
    synthetic.frame(rows).to_csv(runs["made_up"].path / "results.csv", index=False)
    figure = {"column": "latency_ms", "against": {"compute_mode": "hold"}, "take": "max"}
    values = {mode: {**figure, "where": {"compute_mode": mode}} for mode in ("replay", "analytic")}
    evaluation = read(tmp_path, runs, {**CLAIM, "values": values, "holds": [{"value": "replay", "from": 0}]})
    found = evaluation.values(evaluation.document.claims["C1"])
    assert [found[mode].number for mode in values] == pytest.approx([1.0, -5.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "C1 has figures and no rows; name kept runs"),
        ({"rows": ["mad_up"]}, "C1.rows: mad_up: unknown; did you mean made_up?"),
        ({"holds": []}, "C1 has rows and nothing under holds"),
        ({"holds": [{"of": "ablation", "every": {}}]}, "C1: of: ablation: unknown"),
        ({"id": "C2"}, "claim number 1 is called C2; allowed: C1"),
        ({"id": "one"}, "claims[0].id=one; allowed: C1, C2"),
        ({"titel": "x"}, "claims[0]: titel: unknown; did you mean title"),
        ({"values": 3}, "C1.values must be a mapping of names, not int"),
        ({"holds": "all"}, "C1.holds must be a list, not str"),
        ({"values": {"fast": {"colum": "x"}}}, "C1.values.fast: colum: unknown; did you mean column?"),
        ({"tables": {"t": {"rows": [], "columns": []}}}, "C1.tables.t lacks column"),
        ({"tables": {"t": {"column": "x", "rows": [{}], "columns": []}}}, "C1.tables.t.rows[0] lacks label, where"),
        ({"tables": {"t": {"column": "x", "rows": [], "columns": [], "format": "s"}}}, "format=s; allowed: as .2f"),
    ],
)
def test_a_wrong_file_is_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path, runs: dict[str, KeptRun]
) -> None:
    with pytest.raises(ClaimsError) as error:
        read(tmp_path, runs, {**CLAIM, **changes})
    assert message in str(error.value) and "\n" not in str(error.value)


FAST = CLAIM["values"]["fast"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {"fast": {**FAST, "column": "speed"}}}, "C1.values.fast: the rows have no column speed"),
        ({"values": {"fast": {**FAST, "where": {"gruops": 1}}}}, "no column gruops: unknown; did you mean groups"),
        (
            {"values": {"fast": {**FAST, "where": {"method": "astra"}}}},
            "18 points fit {'method': 'astra'}; allowed: exactly",
        ),
        (
            {"values": {"fast": {**FAST, "where": {"method": "ring"}}}},
            "0 points fit {'method': 'ring'}; allowed: exactly",
        ),
        ({"values": {"fast": {**FAST, "where": {"groups": "one"}}}}, "groups=one: a column of numbers"),
        ({"values": {"fast": {**FAST, "where": {"groups": True}}}}, "groups=True: must be a number"),
        ({"values": {"fast": {**FAST, "where": {"method": 1}}}}, "method=1: must be a text"),
        (
            {"values": {"fast": {**FAST, "where": {"method": {"from": 1}}}}},
            "allowed are from and to, of a column of numbers",
        ),
        ({"values": {"fast": {**FAST, "where": {"groups": {"over": 1}}}}}, "allowed are from and to"),
        ({"values": {"fast": {**FAST, "where": {"verified": "yes"}}}}, "verified=yes: must be true or false"),
        ({"values": {"fast": {**FAST, "column": "method"}}}, "column: method holds no numbers"),
        ({"values": {"fast": {**FAST, "take": "mean"}}}, "take: mean: unknown; did you mean"),
        ({"values": {"fast": {"ratio": ["fast", "slow"]}}}, "C1.values.fast: fast: unknown"),
        ({"values": {"fast": {"ratio": ["fast"]}}}, "ratio and difference have two names"),
        ({"values": {"fast": {**FAST, "against": {"groups": 7}}}}, "a point has none beside it with {'groups': 7}"),
        ({"holds": [{"every": {"speedup": "< 1"}, "among": {"method": "ring"}}]}, "holds[0]: no point is among"),
        ({"holds": [{"every": {}, "value": "fast"}]}, "holds[0]: needs one of every, some, none, value and increasing"),
        ({"holds": [{"value": "fast"}]}, "holds[0]: fast needs from or to"),
        ({"holds": [{"value": "fsat", "to": 1}]}, "holds[0]: fsat: unknown; did you mean fast?"),
        ({"sentence": "{fsat:.2f}"}, "C1.sentence: fsat: unknown; did you mean fast?"),
        ({"sentence": "{fast:s}"}, "{fast:s}: a figure is written as .2f"),
        ({"sentence": "{fast.__class__:.2f}"}, "C1.sentence: fast: unknown"),
        ({"sentence": "{fast}"}, "a brace that belongs to no figure"),
        ({"sentence": "{table nothing}"}, "table nothing: unknown; allowed: all"),
        ({"sentence": "{C7.fast:.2f}"}, "C7: unknown"),
    ],
)
def test_rows_that_do_not_fit_are_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path, runs: dict[str, KeptRun]
) -> None:
    evaluation = read(tmp_path, runs, {**CLAIM, **changes})
    claim = evaluation.document.claims["C1"]
    with pytest.raises(ClaimsError) as error:
        sentence(claim, evaluation), evaluation.broken(claim), section(claim, evaluation)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_claim_whose_rows_are_gone_is_one_line(tmp_path: Path, runs: dict[str, KeptRun]) -> None:
    (runs["made_up"].path / "results.csv").unlink()
    evaluation = read(tmp_path, runs, CLAIM)
    with pytest.raises(ResultsError, match="no results.parquet or results.csv in it"):
        evaluation.broken(evaluation.document.claims["C1"])


def test_names_are_data(tmp_path: Path, runs: dict[str, KeptRun]) -> None:
    points = points_of(load_rows(runs["made_up"].path))
    for text in ("@x", "__import__('os')", "astra' or method == 'tensor"):
        assert select(points, {"method": text}, "here").empty
        with pytest.raises(ClaimsError, match="no column"):
            select(points, {text: 1}, "here")


def test_a_page_has_each_block_once(tmp_path: Path, runs: dict[str, KeptRun]) -> None:
    page = "a\n<!-- generated: one -->\nold\n<!-- end -->\nb\n"
    assert with_blocks(page, {"one": "new"}, "P") == page.replace("old", "new")
    with pytest.raises(ClaimsError, match="P has 0 blocks two"):
        with_blocks(page, {"one": "new", "two": "x"}, "P")
    with pytest.raises(ClaimsError, match="P has 2 blocks one"):
        with_blocks(page + page, {"one": "new"}, "P")
    with pytest.raises(ClaimsError, match="P: block one: unknown"):
        with_blocks(page, {}, "P")


def test_text_is_wrapped_and_tables_are_not() -> None:
    long = "word " * 40
    lines = wrapped(f"{long}\n\n- {long}\n- short\n\n| a | {long} |").splitlines()
    assert max(map(len, lines[:-1])) <= 120 and lines[-1].startswith("| a | word word") and "- short" in lines
    assert lines[3].startswith("- word") and lines[4].startswith("  word")


def test_a_rounded_zero_has_no_sign() -> None:
    assert written(Quoted(-0.001), "+.2f") == "0.00" and written(Quoted(-0.01), "+.2f", "%") == "-0.01%"
