"""Codebooks of a Vision Transformer by k-means on its activations, without fine-tuning (ASTRA, arXiv 2505.19342).

What is clustered is what ASTRA sends: the residual stream of the content tokens at each layer's input.

Shape suffixes: B images, S sequence, D hidden, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from testbed.astra.codebook_spec import CodebookSpec, common_settings
from testbed.astra.codebooks import cached_codebooks, fingerprint
from testbed.astra.kmeans import Progress, cluster, empty_codebooks
from testbed.astra.quantizer import Codebooks
from testbed.astra.training.evaluation import Examples
from testbed.datasets.photographs import photographs
from testbed.models.vit import VisionTransformer

RECIPE = 1  # to be raised with every change that alters codebooks, so that older cache files are not used
SAMPLES_PER_CODEWORD = 4
FEWEST_IMAGES = 4  # even where fewer give enough samples: codewords of one image fit no other image
TRAINING_SAMPLES_PER_CODEWORD = 64  # where there are enough labeled images
FEWEST_EXAMPLES = 256
TOKENS_PER_BATCH = 2048  # through a block at a time; bounds the memory of activations


@torch.no_grad()
def train_vit_codebooks(
    model: VisionTransformer,
    images_BCHW: Tensor,
    specs: Sequence[CodebookSpec],
    seed: int,
    progress: Progress | None = None,
) -> dict[CodebookSpec, Codebooks]:
    """The codebooks of each spec, from one pass of the images through the model.

    images_BCHW: model input of a size that fits ``model``. specs: differ in groups only. ``progress(done, total)`` is
    called after each layer and spec. The codebooks are the same on every run with the same number of threads.

    Raises ConfigError for a spec that does not fit the model, ValueError if there are fewer content tokens than
    codewords.
    """
    size, tokens = common_settings(specs).size, model.shape.tokens
    codebooks = empty_codebooks(specs, model.shape)
    if len(images_BCHW) * tokens < size:
        raise ValueError(
            f"{len(images_BCHW)} images of {tokens} tokens cannot give {size} codewords; "
            f"expected {math.ceil(size / tokens)} images or more"
        )
    batches = images_BCHW.split(max(1, TOKENS_PER_BATCH // model.shape.sequence))
    x_BSD = torch.cat([model.embed(batch_BCHW) for batch_BCHW in batches])
    # layer by layer, so that only one layer's samples are in memory
    for layer, block in enumerate(model.blocks):
        x_ND = x_BSD[:, 1:].flatten(0, 1).numpy()
        cluster(x_ND, layer, codebooks, seed, progress)
        if layer + 1 < model.shape.layers:
            x_BSD = torch.cat([block(part_BSD) for part_BSD in x_BSD.split(len(batches[0]))])
    return codebooks


def codebooks_of_examples(model: VisionTransformer, examples: Examples, spec: CodebookSpec, seed: int) -> Codebooks:
    """Codebooks of training examples that ``seed`` draws, from which fine-tuning starts.

    The model must be on the CPU. Raises what ``train_vit_codebooks`` raises.
    """
    count = max(FEWEST_EXAMPLES, math.ceil(TRAINING_SAMPLES_PER_CODEWORD * spec.size / model.shape.tokens))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return train_vit_codebooks(model, examples.batch(order[:count])[0], [spec], seed)[spec]


def vit_codebooks_for(
    model: VisionTransformer,
    specs: Sequence[CodebookSpec],
    seed: int,
    cache_dir: Path,
    progress: Progress | None = None,
) -> dict[CodebookSpec, Path]:
    """The file with the codebooks of each spec; trained on photographs where ``cache_dir`` has none.

    specs: differ in groups only. ``seed`` draws the photographs and starts k-means. A damaged file is replaced, with a
    warning. ``load_codebooks`` reads a file.

    Raises what ``train_vit_codebooks`` raises, and EnvironmentFault if the package with the photographs is missing.
    """
    size, tokens = common_settings(specs).size, model.shape.tokens
    for spec in specs:
        spec.check(model.shape)

    def train(missing: list[CodebookSpec]) -> dict[CodebookSpec, Codebooks]:
        count = max(FEWEST_IMAGES, math.ceil(SAMPLES_PER_CODEWORD * size / tokens))
        images_BCHW = photographs(tokens, model.config.patch, count, seed)
        return train_vit_codebooks(model, images_BCHW, missing, seed, progress)

    recipe = {"recipe": RECIPE, "model": asdict(model.config), "weights": fingerprint(model), "seed": seed}
    return cached_codebooks(recipe, specs, model.shape, cache_dir, train)
