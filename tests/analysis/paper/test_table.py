from __future__ import annotations

import pandas as pd

from analysis.load import normalize
from analysis.paper.latency import reported_figures
from analysis.paper.table import paper_table
from testbed.results.schema import ACCURACY
from tests.analysis import synthetic
from tests.analysis.synthetic_quality import quality, quality_row


def evaluated(*rows: dict) -> pd.DataFrame:
    return normalize(pd.DataFrame(list(rows), columns=list(ACCURACY.columns)) if rows else quality(), ACCURACY)


def lines(latency=(), rows=()) -> list[dict[str, str]]:
    table = paper_table(list(latency), list(rows))
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def find(found: list[dict[str, str]], what: str, where: str) -> dict[str, str]:
    (line,) = (line for line in found if line["result"] == what and where in line["setting"])
    return line


def test_every_reported_figure_has_a_line_with_a_reason_where_ours_is_missing():
    found = lines()
    assert len(found) == len(reported_figures())
    assert all(line["ours"] == "-" and line["why"] for line in found)
    assert not any("cost model" in line["setting"] for line in found)  # what was fitted is not the paper's
    assert find(found, "astra accuracy", "G=32 + 8-bit")["why"] == "weights are not quantized here"


def test_latencies_stand_beside_the_papers():
    found = lines([normalize(synthetic.sweep())])
    line = find(found, "astra speedup over single", "G=1, 10 Mbps")
    assert (line["paper"], line["ours"], line["our spread"]) == ("2.64x", "2.55x", "3.9%")
    assert "ours is on network mininet" in line["why"]
    assert found[0]["ours"] != "-" and found[-1]["ours"] == "-"


def test_compression_is_of_the_bytes_that_were_sent():
    line = find(lines([normalize(synthetic.sweep())]), "astra compression", "compression, G=1")
    assert line["paper"] == "2457.6x" and line["ours"] == "2,457x"


def test_a_quality_is_compared_by_its_change():
    line = find(lines(rows=[evaluated()]), "astra accuracy", "ViT-Base, CIFAR-100, G=1")
    assert line["paper"] == "-3.58 (88.95%)"  # against 92.53
    assert line["ours"] == "-1.97 (88.03%)" and line["difference"] == "+1.61 points"
    assert line["why"] == "model vit_tiny (D=96, 49 tokens); data fashion_mnist"
    baseline = find(lines(rows=[evaluated()]), "single accuracy", "CIFAR-100, uncompressed")
    assert baseline["ours"] == "-"  # what another model is worth on other data says nothing
    same = evaluated(quality_row("uncompressed", model="vit_base", data="cifar100"))
    baseline = find(lines(rows=[same]), "single accuracy", "CIFAR-100, uncompressed")
    assert (baseline["paper"], baseline["ours"], baseline["difference"]) == ("92.53%", "90.00%", "-2.53")


def test_language_models_are_not_compared_with_images():
    found = lines(rows=[evaluated()])
    assert all(line["ours"] == "-" for line in found if "Llama" in line["setting"] or "GPT2" in line["setting"])
    rows = [
        quality_row(stage, 32, model="smollm2", data="wikitext", metric="perplexity", value=value)
        for stage, value in (("uncompressed", 20.0), ("trained", 25.0))
    ]
    found = lines(rows=[evaluated(*rows)])
    line = find(found, "astra perplexity", "GPT2-M, Wikitext-103, G=32")
    assert line["paper"] == "+13.78% (16.84)" and line["ours"] == "+25.00% (25.00)"
    assert all(line["ours"] == "-" for line in found if "ViT" in line["setting"])


def test_codebooks_that_were_not_fine_tuned_are_named():
    rows = evaluated(*(quality_row(stage, 1) for stage in ("uncompressed", "k-means")))
    line = find(lines(rows=[rows]), "astra accuracy", "ViT-Base, CIFAR-100, G=1")
    assert line["ours"] == "-9.97 (80.03%)"
    assert line["why"].endswith("codebooks from k-means, not fine-tuned")


def test_parameters_of_training_are_those_of_the_result():
    rows = [quality_row("uncompressed")]
    rows += [quality_row("trained", 1, noise=noise, value=86.0 + noise) for noise in (0.0, 1.0)]
    line = find(lines(rows=[evaluated(*rows)]), "astra accuracy", "lambda=1")
    assert line["ours"] == "-3.00 (87.00%)" and "the G of the paper's result is not known" in line["why"]


def test_a_result_without_a_parameter_takes_what_the_paper_trains_with():
    rows = [quality_row("uncompressed")]
    rows += [quality_row("trained", 32, commitment=beta, value=80.0 + beta) for beta in (0.0, 2e-4, 0.25)]
    found = lines(rows=[evaluated(*rows)])
    assert find(found, "astra accuracy", "table1: ViT-Base, CIFAR-100, G=32")["ours"].endswith("(80.00%)")
    assert find(found, "astra accuracy", "beta=0.25")["ours"].endswith("(80.25%)")
    rows.append(quality_row("trained", 1, value=70.0))
    assert find(lines(rows=[evaluated(*rows)]), "astra accuracy", "lambda=0")["ours"].endswith("(70.00%)")


def test_a_variant_and_its_baseline_are_of_one_run():
    paper_like = evaluated(quality_row("uncompressed"), quality_row("trained", 1, value=89.0))
    small = {"codebook_size": 64, "compression": 32 * 128 / 10}
    noises = [quality_row("trained", 1, noise=noise, value=80.0 + noise, **small) for noise in (0.0, 1.0)]
    found = lines(rows=[evaluated(quality_row("uncompressed", value=85.0, compression=1), *noises), paper_like])
    assert find(found, "astra accuracy", "CIFAR-100, G=1")["ours"] == "-1.00 (89.00%)"
    assert find(found, "astra accuracy", "lambda=0")["ours"] == "-5.00 (80.00%)"  # of the run that has lambda=1 as well


def test_the_most_similar_variant_is_taken_and_its_difference_told():
    rows = [
        quality_row("uncompressed"),
        quality_row("trained", 1, codebook_size=64, objective="distill", trained_on="1-8"),
    ]
    line = find(lines(rows=[evaluated(*rows)]), "astra accuracy", "CIFAR-100, G=1")
    assert line["why"].endswith("K=64; objective distill; fine-tuned on 1-8 devices")
    rows.append(quality_row("trained", 1))
    line = find(lines(rows=[evaluated(*rows)]), "astra accuracy", "CIFAR-100, G=1")
    assert line["why"] == "model vit_tiny (D=96, 49 tokens); data fashion_mnist"


def test_latency_of_a_model_is_compared_with_the_same_model_only():
    rows = [synthetic.row("astra", 1, bandwidth_mbps=10.0, model="llama_3_8b", latency_ms=2000.0)]
    line = find(lines([normalize(synthetic.frame(rows))]), "astra latency", "G=1, 10 Mbps")
    assert (line["paper"], line["ours"]) == ("1.563 s", "2.000 s")
    assert all(line["ours"] == "-" for line in lines([normalize(synthetic.sweep())]) if "Llama" in line["setting"])
