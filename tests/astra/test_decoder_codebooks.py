"""Codebooks of decoders: they fit what each layer quantizes, leave anchor_tokens out, and are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from testbed.astra import decoder_codebooks
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


def quantizer_of(books: Codebooks) -> Quantizer:
    return Quantizer(books.codebooks_LIKd, rotation_LDD=books.rotation_LDD)


def relative_errors(model: Llama | Gpt2, books: Codebooks, quantized: Quantized, anchor_tokens: int = 0) -> list[float]:
    """Squared quantization error over variance, per layer."""
    quantizer, x_BSD, errors = quantizer_of(books), model.embed(WINDOWS), []
    for layer, block in enumerate(model.blocks):
        rows = to_quantize(block, x_BSD, quantized)[:, anchor_tokens:].flatten(0, 1)
        rest = rows - quantizer.decode(layer, quantizer.encode(layer, rows))
        errors.append((rest.square().mean() / (rows - rows.mean(0)).square().mean()).item())
        x_BSD = block(x_BSD)
    return errors


@pytest.mark.parametrize("quantized", KINDS)
def test_codebooks_fit_what_each_layer_quantizes(quantized: Quantized, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["gpt2"]  # with positions: a layer's inputs are more than the vocabulary
    width = 48 if quantized == "keys_values" else 24
    many = width // 2
    books = train_decoder_codebooks(model, WINDOWS, quantized, [1, many], 32, seed=0)
    shapes = {groups: tuple(book.codebooks_LIKd.shape) for groups, book in books.items()}
    assert shapes == {1: (2, 1, 32, width), many: (2, many, 32, 2)}
    whole, grouped = (relative_errors(model, books[groups], quantized) for groups in (1, many))
    assert max(whole) < 0.75
    assert all(g < w / 2 for g, w in zip(grouped, whole, strict=True))
    shifted = relative_errors(model, Codebooks(books[many].codebooks_LIKd.roll(1, 0)), quantized)
    assert all(wrong > 1.2 * right for wrong, right in zip(shifted, grouped, strict=True))
    monkeypatch.setattr(decoder_codebooks, "TOKENS_AT_ONCE", 30)
    again = train_decoder_codebooks(model, WINDOWS, quantized, [many], 32, seed=0)[many]
    errors = relative_errors(model, again, quantized)
    assert errors == pytest.approx(grouped, rel=0.05), "batching is for memory only"


def test_anchors_leave_no_trace() -> None:
    far = WINDOWS.clone()
    far[:, 0] = 0
    one, other = (train_decoder_codebooks(MODEL, w, "residual", [2], 16, 0, anchor_tokens=1)[2] for w in (WINDOWS, far))
    first = one.codebooks_LIKd[0]
    assert torch.equal(first, other.codebooks_LIKd[0]), "the input of the first layer knows of no other token"
    assert not torch.equal(first, train_decoder_codebooks(MODEL, far, "residual", [2], 16, 0)[2].codebooks_LIKd[0])


@pytest.mark.parametrize("quantized", KINDS)
def test_turned_to_their_components_tokens_lose_less(quantized: Quantized) -> None:
    model = MODELS["gpt2"]
    plain, turned = (
        train_decoder_codebooks(model, WINDOWS, quantized, [4], 32, 0, pre_rotation=pre_rotation)[4]
        for pre_rotation in ("none", "pca")
    )
    rotation_LWW = turned.rotation_LDD
    assert rotation_LWW is not None
    half = rotation_LWW.shape[-1] // 2
    apart = bool((rotation_LWW[:, :half, half:] == 0).all())
    assert apart == (quantized == "keys_values"), "keys and values are turned each for themselves"
    pairs = zip(relative_errors(model, turned, quantized), relative_errors(model, plain, quantized), strict=True)
    assert all(own < before for own, before in pairs)


def test_more_codewords_lose_less() -> None:
    nlls = []
    for size in (2, 16, 256):
        books = train_decoder_codebooks(MODEL, WINDOWS, "keys_values", [4], size, seed=0)[4]
        student = AstraDecoder(MODEL, 12, VectorQuantizer(books.codebooks_LIKd), "keys_values").eval()
        with torch.no_grad():
            nlls.append((student(WINDOWS, [3, 3, 3, 3]).logits - MODEL(WINDOWS)).square().mean().item())
    assert nlls[0] > 2 * nlls[1] > 4 * nlls[2]


def test_perplexity_on_devices_is_that_of_the_plain_model_where_nothing_is_lost() -> None:
    student = AstraDecoder(MODEL, 12, None, anchor_tokens=12).eval()
    on_one = window_nll(lambda ids: student(ids, [12]).logits, WINDOWS[:5])
    assert perplexity(on_one) == pytest.approx(perplexity(window_nll(MODEL, WINDOWS[:5])), rel=1e-5)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="40 windows of 12 tokens cannot give 512 codewords; expected 47 windows or"):
        train_decoder_codebooks(MODEL, WINDOWS, "residual", [1], 512, 0, anchor_tokens=1)
    with pytest.raises(ValueError, match="all are anchor_tokens"):
        train_decoder_codebooks(MODEL, WINDOWS, "residual", [1], 4, 0, anchor_tokens=12)
    with pytest.raises(ConfigError, match="astra.groups=5"):
        train_decoder_codebooks(MODEL, WINDOWS, "residual", [1, 5], 16, 0)
    with pytest.raises(ConfigError, match="astra.quantized=values"):
        train_decoder_codebooks(MODEL, WINDOWS, "values", [1], 16, 0)  # pyright: ignore[reportArgumentType]


def test_the_cache_is_used_and_anything_that_matters_changes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = decoder_codebooks_for(MODEL, WINDOWS, "keys_values", [2, 4], 16, 0, tmp_path, 1)
    expected = train_decoder_codebooks(MODEL, WINDOWS, "keys_values", [4], 16, 0, 1)[4]
    assert torch.equal(load_codebooks(first[4]).codebooks_LIKd, expected.codebooks_LIKd)
    others = [
        decoder_codebooks_for(MODEL, WINDOWS, "residual", [2], 16, 0, tmp_path, 1),
        decoder_codebooks_for(MODEL, WINDOWS, "keys_values", [2], 16, 0, tmp_path, 2),
        decoder_codebooks_for(MODEL, WINDOWS[1:], "keys_values", [2], 16, 0, tmp_path, 1),
        decoder_codebooks_for(MODEL, WINDOWS, "keys_values", [2], 32, 0, tmp_path, 1),
        decoder_codebooks_for(MODEL, WINDOWS, "keys_values", [2], 16, 1, tmp_path, 1),
        decoder_codebooks_for(MODELS["gpt2"], WINDOWS, "keys_values", [2], 16, 0, tmp_path, 1),
    ]
    assert len({*first.values(), *(other[2] for other in others)}) == 8
    monkeypatch.setattr(decoder_codebooks, "train_decoder_codebooks", None)
    assert decoder_codebooks_for(MODEL, WINDOWS, "keys_values", [4, 2], 16, 0, tmp_path, 1) == {
        4: first[4],
        2: first[2],
    }
