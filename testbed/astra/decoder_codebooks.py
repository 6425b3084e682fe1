"""Codebooks of a decoder by k-means on its activations over a text, without fine-tuning.

The text passes through the plain model layer by layer. Anchor tokens are left out: they are never quantized, so a
codeword that fits them would serve no token that is sent.

Shape suffixes: B windows, S tokens of a window, N samples, W numbers of a token that are quantized.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from testbed.astra.codebook_spec import CodebookSpec, common_settings
from testbed.astra.codebooks import cached_codebooks, fingerprint
from testbed.astra.kmeans import Progress, cluster, empty_codebooks
from testbed.astra.quantized import to_quantize
from testbed.astra.quantizer import Codebooks
from testbed.models.decoder import DecoderBlock
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama

RECIPE = 1  # to be raised with every change that alters codebooks, so that older cache files are not used
TOKENS_PER_BATCH = 2048  # through a block at a time; bounds the memory of activations


@torch.no_grad()
def train_decoder_codebooks(
    model: Llama | Gpt2,
    windows_BS: Tensor,
    specs: Sequence[CodebookSpec],
    seed: int,
    progress: Progress | None = None,
) -> dict[CodebookSpec, Codebooks]:
    """The codebooks of each spec, from one pass of the windows through the model.

    windows_BS: token ids. specs: differ in groups only. ``progress(done, total)`` is called after each layer and spec.
    In memory at a time: one layer's input, and what the layer quantizes.

    Raises ConfigError for a spec that does not fit the model, ValueError if there are fewer tokens than codewords.
    """
    common, shape = common_settings(specs), model.config.shape(windows_BS.shape[1])
    codebooks = empty_codebooks(specs, shape)
    usable = windows_BS.shape[1] - common.anchor_tokens
    if len(windows_BS) * usable < common.size:
        need = f"expected {math.ceil(common.size / usable)} windows or more" if usable > 0 else "all are anchor tokens"
        raise ValueError(
            f"{len(windows_BS)} windows of {windows_BS.shape[1]} tokens cannot give {common.size} codewords; {need}"
        )
    batch_windows = max(1, TOKENS_PER_BATCH // windows_BS.shape[1])
    batches = [model.embed(part_BS) for part_BS in windows_BS.split(batch_windows)]
    for layer, block in enumerate(cast(Iterable[DecoderBlock], model.blocks)):
        x_NW = torch.cat(
            [to_quantize(block, x_BSD, common.quantized)[:, common.anchor_tokens :].flatten(0, 1) for x_BSD in batches]
        ).numpy()
        cluster(x_NW, layer, codebooks, seed, progress)
        del x_NW
        if layer + 1 < shape.layers:
            for index, x_BSD in enumerate(batches):
                batches[index] = block(x_BSD)
    return codebooks


def decoder_codebooks_for(
    model: Llama | Gpt2,
    windows_BS: Tensor,
    specs: Sequence[CodebookSpec],
    seed: int,
    cache_dir: Path,
    progress: Progress | None = None,
) -> dict[CodebookSpec, Path]:
    """The file with the codebooks of each spec; trained on the windows where ``cache_dir`` has none.

    specs: differ in groups only. A damaged file is replaced, with a warning. ``load_codebooks`` reads a file. Raises
    what ``train_decoder_codebooks`` raises.
    """
    shape = model.config.shape(windows_BS.shape[1])
    for spec in specs:
        spec.check(shape)

    def train(missing: list[CodebookSpec]) -> dict[CodebookSpec, Codebooks]:
        return train_decoder_codebooks(model, windows_BS, missing, seed, progress)

    recipe = {
        "decoder_recipe": RECIPE,
        "model": asdict(model.config),
        "weights": fingerprint(model),
        "windows": [list(windows_BS.shape), hashlib.sha256(windows_BS.numpy().tobytes()).hexdigest()],
        "seed": seed,
    }
    return cached_codebooks(recipe, specs, shape, cache_dir, train)
