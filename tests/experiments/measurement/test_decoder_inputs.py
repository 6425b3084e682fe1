"""What a run needs of a causal decoder: weights, a prompt, codebooks, and the result of one device."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from experiments.measurement import decoder_inputs, model_inputs
from testbed.astra.codebooks import load_codebooks
from testbed.config.load import load_config
from testbed.config.schema import DecoderLatencyConfig
from testbed.errors import ConfigError
from testbed.grid import points
from testbed.models.llama import Llama
from testbed.models.weights import load_model
from tests.tiny_llama import LLAMA, edit_weights, save_tiny_llama

WORDS = ["+experiment=decoder_sweep", "model=hub_folder", "astra.groups=4", "astra.codebook_size=16", "bandwidths=10"]


def prepared(folder: Path, *words: str) -> dict[int, model_inputs.Assets]:
    config = load_config([*WORDS, f"model.folder={folder}", *words])
    assert isinstance(config, DecoderLatencyConfig)
    return decoder_inputs.prepare_decoder_inputs(config, points(config))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(decoder_inputs, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(decoder_inputs, "scratch", lambda: tmp_path)
    return save_tiny_llama(tmp_path / "tiny-llama")


def test_each_length_has_its_prompt_and_each_variant_its_codebooks(folder: Path) -> None:
    found = prepared(folder, "tokens=[16,24]", "astra.anchor_tokens=[0,2]")
    assert set(found) == {16, 24}
    for tokens, each in found.items():
        assert isinstance(each.model, Llama) and each.model.shape.tokens == each.inputs.shape[1] == tokens
        assert each.choice.name == "tiny-llama" and each.core_macs_per_s > 0
        with torch.no_grad():
            torch.testing.assert_close(each.result.logits, each.model(each.inputs)[0, -1])
        again = load_model(each.choice, tokens, *each.weights)  # what an actor does
        assert torch.equal(again.token_embed.weight, each.model.token_embed.weight)
        shapes = {
            (spec.quantized, spec.anchor_tokens): tuple(load_codebooks(path).codebooks_LIKd.shape)
            for spec, path in each.codebooks.items()
        }
        residual, keys_values = (LLAMA.layers, 4, 16, 6), (LLAMA.layers, 4, 16, 8)
        assert shapes == {
            (quantized, anchor_tokens): shape
            for quantized, shape in (("residual", residual), ("keys_values", keys_values))
            for anchor_tokens in (0, 2)
        }
    assert len(set(found[16].codebooks.values())) == 4 and found[16].codebooks == found[24].codebooks


def test_a_checkpoint_is_of_one_length(folder: Path) -> None:
    with pytest.raises(ConfigError, match="tokens=.*must be one number, that of the checkpoint"):
        prepared(folder, "tokens=[16,24]", "checkpoint=somewhere")


def test_a_tokenizer_of_another_model_is_refused_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_inputs, "windows", lambda name, tokenizer, cache, *sizes: torch.full(sizes[1::-1], 256))
    monkeypatch.setattr(decoder_inputs, "kmeans_codebooks", lambda *_: pytest.fail("the work has begun"))
    found = f"model.folder={folder}: the text has token ids up to 256, the model's vocabulary ends at 255"
    with pytest.raises(ConfigError, match=re.escape(found)):
        prepared(folder, "tokens=16")


def test_a_text_that_is_too_short_is_a_matter_of_the_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_short(name: str, tokenizer: object, cache: Path, length: int, count: int, split: str) -> None:
        raise ConfigError("data.length", length, f"{split} of {name} has 9 tokens in all")

    monkeypatch.setattr(decoder_inputs, "windows", too_short)
    with pytest.raises(
        ConfigError, match="^tokens=16: needs 1 window of 16 tokens, but held_out of wikipedia has 9 to"
    ):
        prepared(folder, "tokens=16")


def test_results_that_are_not_finite_are_refused(folder: Path) -> None:
    edit_weights(folder, model__layers__0__mlp__down_proj__weight=torch.full((24, 40), 3e38))
    with pytest.raises(
        ConfigError, match="^model=tiny-llama: gives NaN or infinity on one device; expected finite res"
    ):
        prepared(folder, "tokens=16", "methods=single")
