"""Sentences are about what was fixed before anything was measured, and never about the luckiest result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from analysis.accuracy import FIXED, accuracy_tables, fixed_variants, results
from analysis.load import normalize
from analysis.pareto import trade_offs
from analysis.report.headlines import headlines
from testbed.results.schema import ACCURACY
from tests.analysis import synthetic
from tests.analysis.synthetic_quality import quality, quality_row

CONF = Path(__file__).parents[3] / "conf" / "runner"
LUCKY: dict[str, Any] = {"value": 89.9, "change": -0.1, "change_low": -0.4, "change_high": 0.2}
# A setting that the default run does not have -> its value in a luckier variant.
OTHERS = {
    "objective": "distill",
    "noise": 0.1,
    "commitment": 0.0,
    "gradient": "rotation_trick",
    "class_tokens": "single",
    "trained_on": "1-8",
    "num_quantizers": 2,
    "pre_rotation": "pca",
    "int8_tokens": 1,
}


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return normalize(pd.DataFrame(rows, columns=list(ACCURACY.columns)), ACCURACY)


def of_seeds(changes: list[float], **settings: Any) -> list[dict[str, Any]]:
    """A fine-tuned variant with a seed for each change."""
    ends = [{"change": c, "change_low": c - 0.4, "change_high": c + 0.4, "value": 90 + c} for c in changes]
    return [quality_row("trained", 1, **settings, **of, seed=seed) for seed, of in enumerate(ends)]


PLAIN = [quality_row("uncompressed"), *of_seeds([-2.0, -1.9, -2.4])]


def about_g1(rows: list[dict[str, Any]]) -> str:
    (line,) = (line for line in headlines(frame(rows)) if line.startswith("With G=1"))
    return line


@pytest.mark.parametrize(("setting", "value"), OTHERS.items())
def test_a_luckier_variant_does_not_change_the_sentence(setting: str, value: Any) -> None:
    lucky = [row | LUCKY for row in of_seeds([0.0, 0.0, 0.0], **{setting: value})]
    before, after = about_g1(PLAIN), about_g1([*PLAIN, *lucky])
    assert "accuracy (%) 87.90, a change of -2.10 points" in before and "over 3 seeds" in before
    assert after.partition(" bits per token")[2] == before.partition(" bits per token")[2]
    assert any(line.startswith("1 more variants are in the tables") for line in headlines(frame([*PLAIN, *lucky])))


def test_a_luckier_seed_counts_as_one_seed_of_several() -> None:
    assert "a change of -1.60 points" in about_g1([PLAIN[0], *of_seeds([-2.0, -1.9, -2.4, -0.1])])


def test_what_a_run_has_alone_is_what_its_sentence_is_about() -> None:
    only = [quality_row("uncompressed"), *of_seeds([-1.0], objective="distill")]
    assert "a change of -1.00 points" in about_g1(only) and "over the examples of one seed" in about_g1(only)


def test_the_fixed_variant_is_the_default_of_the_experiments() -> None:
    for runner, foreign in (("accuracy_vit", {"quantized", "anchor_tokens"}), ("accuracy_lm", {"class_tokens"})):
        settings = yaml.safe_load((CONF / f"{runner}.yaml").read_text())
        defaults = {name: settings.get(f"{name}s", settings.get(name)) for name in FIXED}
        assert defaults == {name: None if name in foreign else [value] for name, value in FIXED.items()}


def test_no_choice_looks_at_results() -> None:
    """Whatever the values are, the same rows are chosen."""
    rows = frame([*PLAIN, *of_seeds([-3.0], noise=0.1), *of_seeds([-1.0], noise=0.3)])
    negated = rows.assign(value=-rows["value"], change=-rows["change"])
    assert fixed_variants(rows).index.equals(fixed_variants(negated).index)
    assert len(fixed_variants(rows)) == len(PLAIN)


def test_the_front_of_latency_and_accuracy_takes_the_fixed_variant_too() -> None:
    made = {"model": "vit_tiny", "hidden": 96, "codebook_size": 1024}
    single = synthetic.row("single", **made | {"codebook_size": 0})
    latency = synthetic.frame([single, synthetic.row("astra", 1, **made)])
    lucky = pd.DataFrame([quality_row("trained", 1, objective="distill", **LUCKY)], columns=list(ACCURACY.columns))
    before = trade_offs(latency, normalize(quality(), ACCURACY))
    after = trade_offs(latency, normalize(pd.concat([quality(), lucky]), ACCURACY))
    assert after.set_index("label")["value"].to_dict() == before.set_index("label")["value"].to_dict()


def test_intervals_of_several_seeds_are_wider_than_those_of_their_examples() -> None:
    table = results(frame(PLAIN)).set_index("stage").loc["trained"]
    assert table["seeds"] == 3 and table["change"] == pytest.approx(-2.1)
    # t with 2 to 4 degrees of freedom, times the root of 0.07 / 3 + 0.204 ** 2
    assert 2.0 * 0.255 < table["change_high"] - table["change"] < 4.3 * 0.255
    (grid,) = accuracy_tables(frame(PLAIN))
    assert "¹" not in grid.rows[1][3] and not any("one seed" in note for note in grid.notes)


def test_one_seed_is_said() -> None:
    (grid,) = accuracy_tables(frame([PLAIN[0], *of_seeds([-2.0])]))
    assert grid.rows[1][3] == "88.00 -2.00 [-2.40, -1.60]¹" and grid.rows[0][3] == "90.00"
    assert any(note.startswith("¹ one seed") for note in grid.notes)
