"""Photographs as model input: sizes, seeds, normalization, and the error for a missing package."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.datasets import photographs as photographs_module
from testbed.datasets.photographs import EVALUATION, TRAINING, photograph, photographs
from testbed.errors import EnvironmentFault
from testbed.models.vit import patch_grid

needs_photographs = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is missing")


@needs_photographs
@settings(max_examples=15)
@given(tokens=st.integers(1, 64), patch=st.sampled_from([4, 14, 16]), count=st.integers(1, 5))
def test_crops_have_the_size_of_the_patch_grid(tokens, patch, count):
    rows, columns = patch_grid(tokens)
    for pixels, expected in ((photographs(tokens, patch, count, 0), count), (photograph(tokens, patch), 1)):
        assert pixels.shape == (expected, 3, rows * patch, columns * patch)
        assert pixels.dtype == torch.float32 and pixels.isfinite().all()
        assert pixels.min() > -2.2 and pixels.max() < 2.7  # 0 and 255 after normalization


@needs_photographs
def test_a_crop_depends_on_its_seed_and_index_only():
    few, many = photographs(16, 8, 2, seed=5), photographs(16, 8, 15, seed=5)
    assert torch.equal(few, many[:2])
    assert not torch.equal(few, photographs(16, 8, 2, seed=6))
    assert not torch.equal(many[0], many[len(TRAINING)])  # the same photograph, another crop


@needs_photographs
def test_every_photograph_is_there_and_has_content():
    pixels = photographs(64, 8, len(TRAINING), seed=0)
    assert (pixels.std(dim=(1, 2, 3)) > 0.1).all()
    assert torch.equal(photograph(64, 8), photograph(64, 8))


def test_the_evaluation_photograph_is_held_out():
    assert EVALUATION not in TRAINING and len(set(TRAINING)) == len(TRAINING)


@needs_photographs
def test_normalization_is_that_of_imagenet(monkeypatch):
    gray = photographs_module.Image.new("RGB", (40, 30), (124, 116, 104))
    monkeypatch.setattr(photographs_module, "_open", lambda name: gray)
    assert photograph(4, 4).abs().max() < 0.01


def test_missing_package_is_named_with_the_command(monkeypatch):
    photographs_module._open.cache_clear()
    monkeypatch.setattr(photographs_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="scikit-image.*pip install") as caught:
        photograph(4, 4)
    assert "\n" not in str(caught.value)
