"""What a run needs of a causal decoder: weights, a prompt, codebooks, and the result of one device."""

from __future__ import annotations

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
from tests.tiny_llama import LLAMA, save_tiny_llama

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
            torch.testing.assert_close(each.logits, each.model(each.inputs)[0, -1])
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
