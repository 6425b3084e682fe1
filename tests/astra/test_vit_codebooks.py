"""Codebooks of Vision Transformers: they fit each layer's input, are made in one pass, and are cached."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from testbed.astra import vit_codebooks
from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.codebooks import load_codebooks
from testbed.astra.quantizer import Codebooks, Quantizer
from testbed.astra.vit_codebooks import train_vit_codebooks, vit_codebooks_for
from testbed.errors import ConfigError
from testbed.models.vit import VisionTransformer
from testbed.models.weights import ModelChoice, build_model

TINY = ModelChoice("tiny", layers=3, hidden=24, heads=3, patch=4, classes=5, pretrained=False)
TOKENS = 36

pytestmark = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is missing")


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    return build_model(TINY, TOKENS, seed=0)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return vit_codebooks.photographs(TOKENS, TINY.patch, count=8, seed=0)


def relative_errors(
    model: VisionTransformer, codebooks: Codebooks, images: Tensor, num_quantizers: int = 1
) -> list[float]:
    """Squared quantization error over variance, per layer."""
    quantizer = Quantizer(codebooks.codebooks_LIKd, num_quantizers, codebooks.rotation_LDD)
    x_BSD, errors = model.embed(images), []
    for layer, block in enumerate(model.blocks):
        content = x_BSD[:, 1:].flatten(0, 1)
        residual = content - quantizer.decode(layer, quantizer.encode(layer, content))
        errors.append((residual.square().mean() / (content - content.mean(0)).square().mean()).item())
        x_BSD = block(x_BSD)
    return errors


def shapes_of(codebooks: Mapping[CodebookSpec, Codebooks]) -> dict[int, tuple[int, ...]]:
    return {spec.groups: tuple(of.codebooks_LIKd.shape) for spec, of in codebooks.items()}


def specs(groups: list[int], size: int, **settings: Any) -> list[CodebookSpec]:
    return [CodebookSpec(count, size, **settings) for count in groups]


def test_codebooks_fit_the_residual_stream_at_each_layers_input(model: VisionTransformer, images: Tensor) -> None:
    one, eight = specs([1, 8], 32)
    codebooks = train_vit_codebooks(model, images, [one, eight], seed=0)
    assert shapes_of(codebooks) == {1: (3, 1, 32, 24), 8: (3, 8, 32, 3)}
    whole, grouped = (relative_errors(model, codebooks[spec], images) for spec in (one, eight))
    assert max(whole) < 0.6
    assert all(g < w / 2 for g, w in zip(grouped, whole, strict=True))
    shifted = relative_errors(model, Codebooks(codebooks[one].codebooks_LIKd.roll(1, 0)), images)
    assert all(wrong > correct for wrong, correct in zip(shifted, whole, strict=True))


def test_a_second_stage_fits_the_residual_of_the_first(model: VisionTransformer, images: Tensor) -> None:
    codebooks = train_vit_codebooks(model, images, specs([1, 8], 32, num_quantizers=2), seed=0)
    assert shapes_of(codebooks) == {1: (3, 2, 32, 24), 8: (3, 16, 32, 3)}
    for spec, two_stages in codebooks.items():
        one_stage = CodebookSpec(spec.groups, 32)
        first = train_vit_codebooks(model, images, [one_stage], seed=0)[one_stage]
        assert torch.equal(two_stages.codebooks_LIKd[:, : spec.groups], first.codebooks_LIKd)
        pairs = zip(relative_errors(model, two_stages, images, 2), relative_errors(model, first, images), strict=True)
        assert all(two < 0.8 * one for two, one in pairs)


def test_a_pca_rotation_lowers_the_error(model: VisionTransformer, images: Tensor) -> None:
    plain = train_vit_codebooks(model, images, specs([1, 8], 32), seed=0)
    for spec, rotated in train_vit_codebooks(model, images, specs([1, 8], 32, pre_rotation="pca"), seed=0).items():
        assert rotated.rotation_LDD is not None and rotated.rotation_LDD.shape == (3, 24, 24)
        before = relative_errors(model, plain[CodebookSpec(spec.groups, 32)], images)
        # one group is the same clustering problem, rotated
        most = 1.1 if spec.groups == 1 else 0.8
        errors = relative_errors(model, rotated, images)
        assert all(error < most * plain_error for error, plain_error in zip(errors, before, strict=True))


def test_neither_class_token_nor_batching_has_an_effect(
    model: VisionTransformer, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spec,) = specs([2], 16)
    expected = train_vit_codebooks(model, images, [spec], seed=0)[spec].codebooks_LIKd
    monkeypatch.setattr(vit_codebooks, "TOKENS_PER_BATCH", 1)
    one_by_one = train_vit_codebooks(model, images, [spec], seed=0)[spec].codebooks_LIKd
    torch.testing.assert_close(one_by_one[0], expected[0])  # later layers may round to other clusters
    other_class_token = build_model(TINY, TOKENS, seed=0)
    other_class_token.class_token.data += 1
    other = train_vit_codebooks(other_class_token, images, [spec], seed=0)[spec].codebooks_LIKd
    torch.testing.assert_close(other[0], expected[0])


def test_one_pass_for_several_groups_equals_one_pass_each(model: VisionTransformer, images: Tensor) -> None:
    two, four = specs([2, 4], 16)
    both = train_vit_codebooks(model, images, [two, four], seed=3)
    alone = train_vit_codebooks(model, images, [four], seed=3)
    assert torch.equal(both[four].codebooks_LIKd, alone[four].codebooks_LIKd)


def test_progress_counts_layers_and_specs(model: VisionTransformer, images: Tensor) -> None:
    seen = []
    train_vit_codebooks(
        model, images, specs([1, 2], 8), seed=0, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 6) for done in range(1, 7)]


def test_too_few_images_are_refused(model: VisionTransformer, images: Tensor) -> None:
    with pytest.raises(ValueError, match="8 images of 36 tokens cannot give 512 codewords; expected 15 images"):
        train_vit_codebooks(model, images, specs([1], 512), seed=0)


def test_as_many_codewords_as_samples_and_equal_samples(model: VisionTransformer, images: Tensor) -> None:
    blank = torch.zeros_like(images)
    codebooks = train_vit_codebooks(model, blank[:1], specs([1, 3], 32), seed=0)
    assert all(of.codebooks_LIKd.isfinite().all() for of in codebooks.values())


def test_specs_are_checked_first(model: VisionTransformer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="astra.groups=5"):
        vit_codebooks_for(model, specs([1, 5], 16), 0, tmp_path)


def test_the_cache_is_used_and_only_missing_codebooks_are_trained(
    model: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    train = vit_codebooks.train_vit_codebooks

    def counting(model: Any, images: Any, missing: list[CodebookSpec], *rest: Any) -> Any:
        asked.append(([spec.groups for spec in missing], len(images)))
        return train(model, images, missing, *rest)

    monkeypatch.setattr(vit_codebooks, "train_vit_codebooks", counting)
    one, two, three = specs([1, 2, 3], 16)
    first = vit_codebooks_for(model, [one, two], 0, tmp_path / "new")
    assert vit_codebooks_for(model, [two, one], 0, tmp_path / "new") == first
    both = vit_codebooks_for(model, [one, three], 0, tmp_path / "new")
    assert asked == [([1, 2], 4), ([3], 4)]
    assert sorted((tmp_path / "new").glob("[!.]*")) == sorted({*first.values(), *both.values()})
    assert load_codebooks(first[two]).codebooks_LIKd.shape == (3, 2, 16, 12)


def test_the_number_of_images_grows_with_the_codebook(
    model: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    draw = vit_codebooks.photographs
    monkeypatch.setattr(
        vit_codebooks, "photographs", lambda t, p, count, s: counts.append(count) or draw(t, p, count, s)
    )
    vit_codebooks_for(model, specs([1], 128), 0, tmp_path)
    assert counts == [15]  # 4 * 128 samples, 36 per image


def test_everything_that_matters_changes_the_file(model: VisionTransformer, tmp_path: Path) -> None:
    fine_tuned = build_model(TINY, TOKENS, seed=0)
    fine_tuned.blocks[1].mlp.fc1.weight.data += 0.01
    arguments = [(model, 16, 0), (model, 32, 0), (model, 16, 1), (fine_tuned, 16, 0)]
    files = [vit_codebooks_for(m, specs([1], size), seed, tmp_path) for m, size, seed in arguments]
    files.append(vit_codebooks_for(model, specs([1], 16, num_quantizers=2), 0, tmp_path))
    files.append(vit_codebooks_for(model, specs([1], 16, pre_rotation="pca"), 0, tmp_path))
    assert len({path for of in files for path in of.values()}) == 6


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b""])
def test_damaged_files_are_replaced_with_a_warning(model: VisionTransformer, tmp_path: Path, damage: Any) -> None:
    (path,) = vit_codebooks_for(model, specs([1], 16), 0, tmp_path).values()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="is damaged .* training its codebooks again"):
        vit_codebooks_for(model, specs([1], 16), 0, tmp_path)
    assert path.read_bytes() == whole
