"""Settings of codebooks: sizes and bits by formula, and what does not fit a model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from testbed.astra.codebook_spec import CodebookSpec, common_settings
from testbed.astra.quantized import quantized_width
from testbed.errors import ConfigError
from testbed.models.llama import LlamaConfig, Rotary
from testbed.models.vit import VitConfig

VIT = VitConfig(layers=4, hidden=48, heads=4, patch=2, tokens=21, classes=7).shape
DECODER = LlamaConfig(2, 24, 4, 2, 8, 40, 30, 1e-5, Rotary(8, 1000.0), tied=False).shape(8)
SPEC = CodebookSpec(groups=4, size=1024)


def test_bits_of_a_token() -> None:
    assert SPEC.token_bits == 40 and replace(SPEC, num_quantizers=3).token_bits == 120
    assert CodebookSpec(3, 64).token_bits == 18
    assert CodebookSpec(3, 1024).bits_per_token(8) == 30
    assert CodebookSpec(3, 1024, anchor_tokens=2).bits_per_token(8) == 22.5
    assert CodebookSpec(3, 1024, anchor_tokens=9).bits_per_token(8) == 0


def test_shapes_of_codebooks() -> None:
    assert SPEC.codebook_shape(VIT) == (4, 4, 1024, 12)
    assert replace(SPEC, num_quantizers=2).codebook_shape(VIT) == (4, 8, 1024, 12)
    assert SPEC.width(DECODER) == replace(SPEC, quantized="normalized").width(DECODER) == 24
    keys_values = replace(SPEC, quantized="keys_values")
    assert keys_values.width(DECODER) == quantized_width(DECODER, "keys_values") == 2 * 2 * 8
    assert keys_values.codebook_shape(DECODER) == (2, 4, 1024, 8)


def test_label_and_recipe_name_all_settings() -> None:
    assert SPEC.label == "G = 4, K = 1024"
    spec = CodebookSpec(8, 256, 2, "pca", "keys_values", 4)
    assert spec.label == "G = 8, K = 256, 2 residual stages, pre_rotation=pca, keys_values, 4 anchor tokens"
    assert json.loads(json.dumps(spec.recipe)) == {
        "groups": 8,
        "codebook_size": 256,
        "num_quantizers": 2,
        "pre_rotation": "pca",
        "quantized": "keys_values",
        "anchor_tokens": 4,
    }


def test_one_pass_serves_specs_that_differ_in_groups_only() -> None:
    assert common_settings([SPEC, CodebookSpec(1, 1024)]) == SPEC
    with pytest.raises(ValueError, match=r"differ in groups only; found \(G = 4, K = 1024\) and \(G = 1, K = 512\)"):
        common_settings([SPEC, CodebookSpec(1, 512)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 5}, "astra.groups=5: must be a positive divisor of the hidden width 48"),
        ({"size": 1000}, "astra.codebook_size=1000: must be a power of two"),
        ({"num_quantizers": 0}, "astra.num_quantizers=0: must be 1 or more"),
        ({"pre_rotation": "component"}, "astra.pre_rotation=component: .*allowed: none, pca"),
        ({"quantized": "all"}, "astra.quantized=all: "),
        ({"quantized": "keys_values"}, "astra.quantized=keys_values: must be residual but for a causal model"),
        ({"anchor_tokens": 1}, "astra.anchor_tokens=1: must be 0, or for a causal model"),
        ({"anchor_tokens": -1}, "astra.anchor_tokens=-1: must be 0, or for a causal model"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SPEC, **change).check(VIT)


def test_a_decoder_allows_all_tensors_and_anchor_tokens() -> None:
    for quantized in ("residual", "normalized", "keys_values"):
        replace(SPEC, quantized=quantized, anchor_tokens=3).check(DECODER)
