"""k-means refuses samples whose distances float32 cannot hold, with which faiss would end the process."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.kmeans import LARGEST_DISTANCE, cluster, empty_codebooks
from testbed.errors import TestbedError
from testbed.models.shape import ModelShape

SHAPE = ModelShape(1, 8, 2, 16, 4, 1, 12, 2)
SAMPLES = np.random.default_rng(0).uniform(-1, 1, (64, 8)).astype(np.float32)
LIMIT = LARGEST_DISTANCE / math.sqrt(8)


@pytest.mark.parametrize(
    "spec", [CodebookSpec(2, 4), CodebookSpec(2, 4, num_quantizers=3), CodebookSpec(2, 4, 1, "pca")]
)
def test_samples_as_large_as_allowed_have_finite_codewords(spec: CodebookSpec) -> None:
    codebooks = empty_codebooks([spec], SHAPE)
    cluster(np.float32(0.99 * LIMIT) * np.sign(SAMPLES), 0, codebooks, seed=0)
    assert codebooks[spec].codebooks_LIKd.isfinite().all()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1e30, r"an activation of layer 0 is 1e\+30 in size, more than 3.54e\+16"),
        (-1e17, r"an activation of layer 0 is 1e\+17 in size, more than 3.54e\+16"),
        (math.inf, "the activations of layer 0 are not all finite numbers"),
        (-math.inf, "the activations of layer 0 are not all finite numbers"),
        (math.nan, "the activations of layer 0 are not all finite numbers"),
    ],
)
def test_larger_samples_are_refused(value: float, reason: str) -> None:
    samples = SAMPLES.copy()
    samples[5, 3] = value
    with pytest.raises(TestbedError, match=f"^k-means: {reason}$"):
        cluster(samples, 0, empty_codebooks([CodebookSpec(2, 4)], SHAPE), seed=0)
