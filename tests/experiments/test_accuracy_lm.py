"""The language-model experiment end to end, in seconds: a random Llama in a hub folder, and a folder of texts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from analysis.accuracy import accuracy_tables, results
from analysis.load import load_rows
from analysis.report.write import write_report
from experiments import accuracy_common, accuracy_lm
from testbed.astra import decoder_codebooks
from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.codebooks import load_codebooks
from testbed.astra.decoder_codebooks import decoder_codebooks_for
from testbed.astra.training.decoder import AstraDecoder
from testbed.astra.training.ema_quantizer import VectorQuantizer
from testbed.config.load import load_config
from testbed.config.schema import AccuracyLmConfig
from testbed.datasets.perplexity import perplexity, window_nll
from testbed.datasets.token_windows import windows
from testbed.errors import ConfigError, TestbedError
from testbed.models import decoders
from testbed.models.hub import load_hub
from testbed.models.llama import Llama
from testbed.results.run_folder import RunFolder
from testbed.results.schema import ACCURACY
from tests.datasets.test_token_windows import BYTES
from tests.tiny_llama import edit_weights, save_tiny_llama

WORDS = ["data.length=16", "data.windows=5", "data.codebook_windows=12", "data.train_windows=64", "codebook_sizes=16"]
WORDS += ["groups=[1,4]", "quantized=[keys_values,residual]", "anchor_tokens=[0,2]", "devices=[2,4]"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def words(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line that uses only files that the test made."""
    for module in (accuracy_lm, accuracy_common):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(60):
        counted = (f"{i * k % 97} sheep and {k} {'goats' * (k % 3)}" for k in range(9))
        (texts / f"part {i}.txt").write_text(" ".join(counted))
    folders = [f"model.folder={hub}", f"data.folder={texts}", f"results_dir={tmp_path}"]
    return ["+experiment=accuracy_lm", "model=hub_folder", "data=text_folder", *folders, *WORDS]


def configured(words: list[str]) -> AccuracyLmConfig:
    config = load_config(words)
    assert isinstance(config, AccuracyLmConfig)
    return config


def folder_for(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, "accuracy_lm", "abc", ACCURACY)


def test_every_variant_is_evaluated_and_no_row_is_measured_twice(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = configured(words), folder_for(tmp_path)
    calls = 0

    def stopped(logits_of: Any, windows_NS: Tensor, progress: Any = None) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return window_nll(logits_of, windows_NS, progress)

    monkeypatch.setattr(accuracy_lm, "window_nll", stopped)
    with pytest.raises(KeyboardInterrupt):
        accuracy_lm.run(config, "", folder)
    assert len(folder.rows()) == 7  # each is written as soon as it is measured
    assert accuracy_lm.run(config, "", folder) == 0
    rows = folder.rows()
    assert len(rows) == 1 + 2 * 2 * 2 * 2 and (rows["status"] == "ok").all()
    assert calls == len(rows) + 1  # the baseline's likelihoods came from the cache
    assert len(folder.points()) == len(rows)
    assert accuracy_lm.run(config, "", folder) == 0 and calls == len(rows) + 1

    assert set(rows["model"]) == {"tiny-llama"} and set(rows["corpus"]) == {"text"} == set(rows["data"])
    assert set(rows["metric"]) == {"perplexity"} and set(rows["examples"]) == {5} and set(rows["tokens"]) == {16}
    compressed = rows[rows["stage"] == "k-means"]
    exact = compressed["anchor_tokens"] / 16
    assert (compressed["bits_per_token"] == (1 - exact) * 4 * compressed["groups"]).all()
    assert (rows["value_low"] <= rows["value"]).all() and (rows["value"] <= rows["value_high"]).all()
    assert (compressed["change_low"] <= compressed["change"]).all() and (compressed["change"].abs() > 0).all()

    table = results(load_rows(folder.path))
    assert "G=4 K=16 residual 2 anchor tokens" in set(table["label"])
    assert "residual 2 anchor tokens" in set(table["series"])
    assert any(path.stem == "quality" for path in write_report(folder.path))
    (grid,) = accuracy_tables(load_rows(folder.path))
    assert len(grid.rows) == 1 + 8 and grid.columns[3:] == ["text, 2 devices", "text, 4 devices"]
    assert grid.rows[0][3] == grid.rows[0][4] == f"{rows.iloc[0]['value']:.2f}"


def test_the_figure_is_the_perplexity_of_the_decoder(words: list[str], hub: Path, tmp_path: Path) -> None:
    folder = folder_for(tmp_path)
    chosen = ["groups=4", "quantized=keys_values", "anchor_tokens=2", "devices=4"]
    assert accuracy_lm.run(configured([*words, *chosen]), "", folder) == 0
    rows: dict[Any, Any] = folder.rows().set_index("stage").to_dict("index")

    model, texts = load_hub(hub), tmp_path / "texts"
    assert isinstance(model, Llama)
    test = windows("text", BYTES, tmp_path / "other", 16, 5, "held_out", texts)
    seen = windows("text", BYTES, tmp_path / "other", 16, 12, "train", texts)
    spec = CodebookSpec(4, 16, quantized="keys_values", anchor_tokens=2)
    codebooks = load_codebooks(decoder_codebooks_for(model, seen, [spec], 0, tmp_path / "other")[spec])
    quantizer = VectorQuantizer(codebooks.codebooks_LIKd)
    student = AstraDecoder(model, 16, quantizer, "keys_values", anchor_tokens=2).eval()
    plain, compressed = window_nll(model, test), window_nll(lambda ids: student(ids, [4] * 4).logits, test)
    assert rows["uncompressed"]["value"] == pytest.approx(perplexity(plain), rel=1e-6)
    assert rows["k-means"]["value"] == pytest.approx(perplexity(compressed), rel=1e-6)
    ratio = perplexity(compressed) / perplexity(plain)
    assert rows["k-means"]["change"] == pytest.approx(100 * (ratio - 1), rel=1e-5)
    rise = compressed - plain  # Student's t of five windows, in the logarithm
    half = 2.776 * rise.std().item() / math.sqrt(5)
    for end, factor in (("change_low", math.exp(-half)), ("change_high", math.exp(half))):
        assert 1 + rows["k-means"][end] / 100 == pytest.approx(ratio * factor, rel=1e-3)


def test_likelihoods_of_a_model_that_differs_in_one_number_are_others(
    words: list[str], hub: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(hub, tmp_path / "tiny-llama")
    found = []
    for change in (0.0, 0.5):
        weight = load_file(hub / "model.safetensors")["model.embed_tokens.weight"]
        weight.view(-1)[64] += change  # number 65 of the tensor
        edit_weights(folder, model__embed_tokens__weight=weight)
        bench = accuracy_lm._Bench(configured([*words, f"model.folder={folder}", *FEW]), folder_for(tmp_path))
        found.append(bench._uncompressed("text"))
        assert len(list((tmp_path / "cache").glob("nll-*.safetensors"))) == len(found)
    assert not torch.equal(*found)


def test_fine_tuning_lowers_the_perplexity(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_for(tmp_path)
    few = ["groups=1", "quantized=residual", "anchor_tokens=0", "devices=4", "objectives=[labels,distill]"]
    few += ["stages=[k-means,trained]", "training={epochs: 2, batch: 8, learning_rate: 0.01}"]
    config = configured([*words, *few])
    assert accuracy_lm.run(config, "", folder) == 0
    rows = folder.rows()
    assert list(rows["stage"]) == ["uncompressed", "k-means", "trained", "trained"]
    values = rows.set_index(["stage", "objective"])["value"]
    assert values["trained", "labels"] < values["k-means", ""] / 2  # a random model has much to learn
    assert rows["train_examples"].tolist()[2:] == [128, 128] and rows["train_s"].notna().sum() == 2
    monkeypatch.setattr(accuracy_common, "train", lambda *_, **__: pytest.fail("trained again"))
    assert accuracy_lm.run(config, "", folder) == 0
    (table,) = accuracy_tables(load_rows(folder.path))
    label = "G=1 K=16 residual"
    assert [row[0] for row in table.rows] == ["uncompressed", label, f"{label} labels", f"{label} distill"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("model.folder=/nowhere", "model.folder=/nowhere: no such folder; expected one with config.json"),
        ("data.folder=/nowhere", "data.folder=/nowhere: expected a folder with files *.txt"),
        ("groups=5", "groups=5: must be a positive divisor of the hidden width 32"),
        ("codebook_sizes=12", "codebook_sizes=12: must be a power of two"),
        ("codebook_sizes=256", "data.codebook_windows=12: must be 19 or more: 256 codewords need as many tokens"),
        ("anchor_tokens=16", "anchor_tokens=16: must be less than data.length=16"),
        ("devices=17", "devices=17: must be at most 16, the tokens of an example"),
        ("stages=trained training.batch=100", "training.batch=100: must be 1 to 64, the number of training examples"),
        (
            "stages=trained data.train_windows=9999",
            " windows of 17 tokens; 16 more are needed for validation",
        ),
        ("data.windows=9999", "data.windows=9999: held_out of text has "),
        ("data.codebook_windows=9999", "data.codebook_windows=9999: train of text has "),
        ("data.train=wikitext-103", "data.folder=: expected a folder with wiki.train.raw"),
    ],
)
def test_what_does_not_fit_is_found_first(words: list[str], tmp_path: Path, change: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        accuracy_lm.run(configured([*words, *change.split()]), "", folder_for(tmp_path))
    assert text in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("codebooks-*"))


FEW = ["groups=4", "quantized=residual", "anchor_tokens=0", "devices=[2,4]"]


@pytest.mark.parametrize(
    ("nll", "text"),
    [(math.nan, "log-likelihood of window 0 is nan"), (800.0, "value=inf")],  # exp(800) exceeds float64
)
def test_a_result_that_is_not_finite_is_a_failed_row_and_the_others_are_measured(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nll: float, text: str
) -> None:
    calls = 0

    def second_is_broken(logits_of: Any, windows_NS: Tensor, progress: Any = None) -> Tensor:
        nonlocal calls
        calls += 1
        if calls != 2:
            return window_nll(logits_of, windows_NS, progress)
        if math.isnan(nll):
            return window_nll(lambda ids: logits_of(ids) * nll, windows_NS, progress)
        return torch.full((len(windows_NS),), nll, dtype=torch.float64)

    monkeypatch.setattr(accuracy_lm, "window_nll", second_is_broken)
    folder = folder_for(tmp_path)
    assert accuracy_lm.run(configured([*words, *FEW]), "", folder) == 1
    rows = folder.rows()
    assert list(rows["status"]) == ["ok", "failed", "ok"] and list(rows["devices"]) == [1, 2, 4]
    assert text in rows["error"][1] and rows["value"].isna().tolist() == [False, True, False]
    again = configured([*words, *FEW, "retry_failed=true"])
    assert accuracy_lm.run(again, "", folder) == 0 and (folder.rows()["status"] == "ok").all()


def test_a_baseline_whose_outputs_are_not_finite_ends_the_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Llama, "logits", lambda *_: torch.full((1, 16, 256), math.inf))
    with pytest.raises(TestbedError, match=r"the uncompressed baseline on text: .* window 0 is nan, not a finite"):
        accuracy_lm.run(configured([*words, *FEW]), "", folder_for(tmp_path))
    assert folder_for(tmp_path).rows().empty and not list((tmp_path / "cache").glob("nll-*"))


def test_activations_that_are_not_finite_fail_their_variant(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_codebooks, "to_quantize", lambda block, x_BSD, quantized: x_BSD * math.inf)
    folder = folder_for(tmp_path)
    assert accuracy_lm.run(configured([*words, *FEW]), "", folder) == 1
    rows = folder.rows()
    assert list(rows["status"]) == ["ok", "failed", "failed"]
    assert rows["error"][1] == "k-means: the activations of layer 0 are not all finite numbers"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("data=fashion_mnist", "data=fashion_mnist: must be one of english, wikitext103, text_folder"),
        ("model=vit_base", "model=vit_base: must be one of smollm2_135m_q4, hub_folder"),
        ("data=text_folder", "data.folder= (conf/data/text_folder.yaml): is needed; it must be a folder"),
        ("data.corpora=[brown,brawn]", "data.corpora=brawn: must be one of wikipedia, brown, austen"),
        ("data.train=brown", "data.train=brown: must be one of wikipedia, wikitext-103, text"),
        ("quantized=values", "quantized=values: must be one of residual, normalized, keys_values"),
        ("stages=original", "stages=original: must be one of k-means, trained"),
        ("data.length=1", "data.length=1: must be a whole number from 2 to 1000000 (tokens)"),
    ],
)
def test_bad_input_names_the_key(change: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["+experiment=accuracy_lm", change])
    assert text in str(error.value)


def test_one_corpus_stands_for_a_list() -> None:
    config = configured(["+experiment=accuracy_lm", "data.corpora=brown", "data.windows=3"])
    assert config.data.corpora == ["brown"] and config.groups == [32, 8, 1]


def test_a_vision_model_is_refused(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from testbed.models.weights import ModelChoice, build_model

    monkeypatch.setattr(decoders, "load_hub", lambda folder: build_model(ModelChoice("x", 1, 8, 2, 4, 2, False), 4, 0))
    with pytest.raises(ConfigError, match="holds a Vision Transformer; expected GPT-2 or Llama"):
        accuracy_lm.run(configured(words), "", folder_for(tmp_path))
