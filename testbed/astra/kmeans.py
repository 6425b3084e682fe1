"""Codebooks of one layer by k-means (faiss), the initialization of ASTRA's codebooks (arXiv 2505.19342).

Shape suffixes as in quantizer.py, and: N samples, W numbers of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import faiss
import numpy as np
import torch

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.opq import pca_rotation
from testbed.astra.quantizer import Codebooks, Quantizer
from testbed.astra.training.ema_quantizer import nearest_codes
from testbed.errors import TestbedError
from testbed.models.shape import ModelShape

ITERATIONS = 6  # k-means gains little beyond
LARGEST_DISTANCE = 1e17  # its square is far from the end of float32, also after several stages of residual VQ

Progress = Callable[[int, int], None]


def empty_codebooks(specs: Sequence[CodebookSpec], shape: ModelShape) -> dict[CodebookSpec, Codebooks]:
    """Codebooks of each spec for a model of this shape, not yet filled in; see ``cluster``. Raises ConfigError."""
    empty = {}
    for spec in specs:
        spec.check(shape)
        width = spec.width(shape)
        rotation_LWW = None if spec.pre_rotation == "none" else torch.empty(shape.layers, width, width)
        empty[spec] = Codebooks(torch.empty(spec.codebook_shape(shape)), rotation_LWW)
    return empty


def cluster(
    x_NW: np.ndarray,
    layer: int,
    codebooks: Mapping[CodebookSpec, Codebooks],
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Fill in one layer of the codebooks [L, I, K, W / G] of each spec, from samples of W numbers, float32.

    ``progress(done, total)`` is called after each spec. Raises TestbedError for samples that are not finite or so large
    that squares of distances would overflow: faiss would then end the process.
    """
    largest, limit = max(x_NW.max(), -x_NW.min()), LARGEST_DISTANCE / math.sqrt(x_NW.shape[1])
    if not np.isfinite(largest):
        raise TestbedError(f"k-means: the activations of layer {layer} are not all finite numbers")
    if largest > limit:
        raise TestbedError(f"k-means: an activation of layer {layer} is {largest:.3g} in size, more than {limit:.3g}")
    for position, (spec, (codebooks_LIKd, rotation_LWW)) in enumerate(codebooks.items()):
        groups, residual_NW = spec.groups, x_NW
        if rotation_LWW is not None:
            parts = 2 if spec.quantized == "keys_values" else 1  # keys and values are rotated separately
            rotation_LWW[layer] = pca_rotation(torch.from_numpy(x_NW), groups, parts)
            residual_NW = x_NW @ rotation_LWW[layer].numpy().T
        for first in range(0, spec.indices, groups):
            stage_GKd = codebooks_LIKd[layer, first : first + groups]
            if first:
                previous_GKd = codebooks_LIKd[layer, first - groups : first]
                codes_NG = nearest_codes(torch.from_numpy(residual_NW), previous_GKd)
                residual_NW = residual_NW - Quantizer(previous_GKd[None]).decode(0, codes_NG).numpy()
            for group, x_Nd in enumerate(np.split(residual_NW, groups, axis=1)):
                stage_GKd[group] = torch.from_numpy(_centroids(x_Nd, spec.size, seed))
        if progress is not None:
            progress(layer * len(codebooks) + position + 1, len(codebooks_LIKd) * len(codebooks))


def _centroids(x_Nd: np.ndarray, codebook_size: int, seed: int) -> np.ndarray:
    """Codewords [K, d], float32, of the samples, float32, of which there must be K or more."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    faiss.cvar.distance_compute_blas_threshold = 1  # matrix products always: three times as fast for d = 24
    # scores of 1024 samples at a time, not 4096: the same codewords; for d = 18, 16.5 s instead of 27.7 s
    faiss.cvar.distance_compute_blas_query_bs = 1024
    kmeans = faiss.Kmeans(
        x_Nd.shape[1],
        codebook_size,
        niter=ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,  # otherwise faiss warns on stderr below 39
    )
    kmeans.train(np.ascontiguousarray(x_Nd))
    assert kmeans.centroids is not None
    return kmeans.centroids
