"""Codebooks of decoders: they fit what each layer quantizes, leave out anchor tokens, and are cached."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from testbed.astra import decoder_codebooks
from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.codebooks import load_codebooks
from testbed.astra.decoder_codebooks import decoder_codebooks_for, train_decoder_codebooks
from testbed.astra.quantized import Quantized, to_quantize
from testbed.astra.quantizer import Codebooks, Quantizer
from testbed.astra.training.decoder import AstraDecoder
from testbed.astra.training.ema_quantizer import VectorQuantizer
from testbed.datasets.perplexity import perplexity, window_nll
from testbed.errors import ConfigError
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama
from tests.astra.training.test_decoder import CONFIGS, KINDS, VOCABULARY, build

WINDOWS = torch.randint(0, VOCABULARY, (40, 12), generator=torch.Generator().manual_seed(0))
MODELS = {name: build(config).requires_grad_(False) for name, config in CONFIGS.items()}
MODEL = MODELS["grouped"]


def train_one(model: Llama | Gpt2, windows_BS: Tensor, spec: CodebookSpec, seed: int = 0) -> Codebooks:
    return train_decoder_codebooks(model, windows_BS, [spec], seed)[spec]


def relative_errors(model: Llama | Gpt2, codebooks: Codebooks, quantized: Quantized) -> list[float]:
    """Squared quantization error over variance, per layer."""
    quantizer = Quantizer(codebooks.codebooks_LIKd, rotation_LDD=codebooks.rotation_LDD)
    x_BSD, errors = model.embed(WINDOWS), []
    for layer, block in enumerate(model.blocks):
        rows = to_quantize(block, x_BSD, quantized).flatten(0, 1)
        residual = rows - quantizer.decode(layer, quantizer.encode(layer, rows))
        errors.append((residual.square().mean() / (rows - rows.mean(0)).square().mean()).item())
        x_BSD = block(x_BSD)
    return errors


@pytest.mark.parametrize("quantized", KINDS)
def test_codebooks_fit_what_each_layer_quantizes(quantized: Quantized, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["gpt2"]  # with positions: a layer's inputs are more than the vocabulary
    width = 48 if quantized == "keys_values" else 24
    many = width // 2
    specs = [CodebookSpec(groups, 32, quantized=quantized) for groups in (1, many)]
    codebooks = train_decoder_codebooks(model, WINDOWS, specs, seed=0)
    shapes = {spec.groups: tuple(of.codebooks_LIKd.shape) for spec, of in codebooks.items()}
    assert shapes == {1: (2, 1, 32, width), many: (2, many, 32, 2)}
    whole, grouped = (relative_errors(model, codebooks[spec], quantized) for spec in specs)
    assert max(whole) < 0.75
    assert all(g < w / 2 for g, w in zip(grouped, whole, strict=True))
    shifted = relative_errors(model, Codebooks(codebooks[specs[1]].codebooks_LIKd.roll(1, 0)), quantized)
    assert all(wrong > 1.2 * correct for wrong, correct in zip(shifted, grouped, strict=True))
    monkeypatch.setattr(decoder_codebooks, "TOKENS_PER_BATCH", 30)
    errors = relative_errors(model, train_one(model, WINDOWS, specs[1]), quantized)
    assert errors == pytest.approx(grouped, rel=0.05), "batching is for memory only"


def test_anchor_tokens_have_no_effect() -> None:
    far, spec = WINDOWS.clone(), CodebookSpec(2, 16, anchor_tokens=1)
    far[:, 0] = 0
    one, other = (train_one(MODEL, windows_BS, spec) for windows_BS in (WINDOWS, far))
    first = one.codebooks_LIKd[0]
    assert torch.equal(first, other.codebooks_LIKd[0]), "the first layer's input depends on no other token"
    assert not torch.equal(first, train_one(MODEL, far, CodebookSpec(2, 16)).codebooks_LIKd[0])


@pytest.mark.parametrize("quantized", KINDS)
def test_a_pca_rotation_lowers_the_error(quantized: Quantized) -> None:
    model, spec = MODELS["gpt2"], CodebookSpec(4, 32, quantized=quantized)
    plain, rotated = (train_one(model, WINDOWS, each) for each in (spec, replace(spec, pre_rotation="pca")))
    rotation_LWW = rotated.rotation_LDD
    assert rotation_LWW is not None
    half = rotation_LWW.shape[-1] // 2
    separate = bool((rotation_LWW[:, :half, half:] == 0).all())
    assert separate == (quantized == "keys_values"), "keys and values are rotated separately"
    pairs = zip(relative_errors(model, rotated, quantized), relative_errors(model, plain, quantized), strict=True)
    assert all(error < plain_error for error, plain_error in pairs)


def test_more_codewords_lower_the_error() -> None:
    errors = []
    for size in (2, 16, 256):
        codebooks = train_one(MODEL, WINDOWS, CodebookSpec(4, size, quantized="keys_values"))
        student = AstraDecoder(MODEL, 12, VectorQuantizer(codebooks.codebooks_LIKd), "keys_values").eval()
        with torch.no_grad():
            errors.append((student(WINDOWS, [3, 3, 3, 3]).logits - MODEL(WINDOWS)).square().mean().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_perplexity_on_one_device_is_that_of_the_plain_model() -> None:
    student = AstraDecoder(MODEL, 12, None, anchor_tokens=12).eval()
    on_one = window_nll(lambda ids: student(ids, [12]).logits, WINDOWS[:5])
    assert perplexity(on_one) == pytest.approx(perplexity(window_nll(MODEL, WINDOWS[:5])), rel=1e-5)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="40 windows of 12 tokens cannot give 512 codewords; expected 47 windows or"):
        train_one(MODEL, WINDOWS, CodebookSpec(1, 512, anchor_tokens=1))
    with pytest.raises(ValueError, match="all are anchor tokens"):
        train_one(MODEL, WINDOWS, CodebookSpec(1, 4, anchor_tokens=12))
    with pytest.raises(ConfigError, match="astra.groups=5"):
        train_decoder_codebooks(MODEL, WINDOWS, [CodebookSpec(1, 16), CodebookSpec(5, 16)], 0)
    with pytest.raises(ConfigError, match="astra.quantized=values"):
        train_one(MODEL, WINDOWS, CodebookSpec(1, 16, quantized="values"))  # pyright: ignore[reportArgumentType]


def test_the_cache_is_used_and_everything_that_matters_changes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, four = (CodebookSpec(groups, 16, quantized="keys_values", anchor_tokens=1) for groups in (2, 4))
    first = decoder_codebooks_for(MODEL, WINDOWS, [two, four], 0, tmp_path)
    assert torch.equal(load_codebooks(first[four]).codebooks_LIKd, train_one(MODEL, WINDOWS, four).codebooks_LIKd)
    changed = [replace(two, quantized="residual"), replace(two, anchor_tokens=2), replace(two, size=32)]
    others = [
        *(decoder_codebooks_for(MODEL, WINDOWS, [spec], 0, tmp_path) for spec in changed),
        decoder_codebooks_for(MODEL, WINDOWS[1:], [two], 0, tmp_path),
        decoder_codebooks_for(MODEL, WINDOWS, [two], 1, tmp_path),
        decoder_codebooks_for(MODELS["gpt2"], WINDOWS, [two], 0, tmp_path),
    ]
    assert len({*first.values(), *(path for files in others for path in files.values())}) == 8
    monkeypatch.setattr(decoder_codebooks, "train_decoder_codebooks", None)
    assert decoder_codebooks_for(MODEL, WINDOWS, [four, two], 0, tmp_path) == first


def test_a_model_that_differs_in_number_65_of_a_tensor_gets_other_codebooks(tmp_path: Path) -> None:
    spec, other = CodebookSpec(2, 16), copy.deepcopy(MODEL)
    with torch.no_grad():
        other.token_embed.weight.view(-1)[64] += 0.5
    (path,), (changed,) = (
        decoder_codebooks_for(model, WINDOWS, [spec], 0, tmp_path).values() for model in (MODEL, other)
    )
    assert path != changed
    assert not torch.equal(load_codebooks(path).codebooks_LIKd, load_codebooks(changed).codebooks_LIKd)
