"""Codebooks of a decoder by k-means on what its layers quantize of a text, without fine-tuning, cached on disk.

The text goes through the plain model layer by layer. Anchors are left out: they are never quantized, so
codewords that they draw would serve no token that is sent.
Shape suffixes: B windows, S tokens of a window, N samples, W numbers of what is quantized, G groups, L layers.
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

from testbed.astra.codebooks import Progress, cached_codebooks, cluster, empty_codebooks, fingerprint
from testbed.astra.opq import PreRotation
from testbed.astra.quantized import Quantized, check_quantized, quantized_width, to_quantize
from testbed.astra.quantizer import Codebooks, check_quantizer
from testbed.models.decoder import DecoderBlock
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama

RECIPE = 1  # to be raised with every change that alters codebooks, so that older cache files are not used
TOKENS_AT_ONCE = 2048  # through a block; bounds the memory of activations


@torch.no_grad()
def train_decoder_codebooks(
    model: Llama | Gpt2,
    windows_BS: Tensor,
    quantized: Quantized,
    groups: Sequence[int],
    codebook_size: int,
    seed: int,
    anchor_tokens: int = 0,
    progress: Progress | None = None,
    num_quantizers: int = 1,
    pre_rotation: PreRotation = "none",
) -> dict[int, Codebooks]:
    """Codebooks [layers, num_quantizers * G, codebook_size, W / G], float32, for each G of ``groups``, from one pass.

    windows_BS: token ids. anchor_tokens: how many first tokens of a window stay exact. num_quantizers, pre_rotation:
    see Quantizer. ``progress(done, total)`` is called after each layer and G. Held at a time: one layer's input and
    what it quantizes.

    Raises ConfigError for groups, a codebook size or something quantized that cannot be, ValueError if there are fewer
    tokens than codewords.
    """
    shape = model.config.shape(windows_BS.shape[1])
    width = _checked_width(model, quantized, groups, codebook_size)
    each = windows_BS.shape[1] - anchor_tokens
    if len(windows_BS) * each < codebook_size:
        need = f"expected {math.ceil(codebook_size / each)} windows or more" if each > 0 else "all are anchor_tokens"
        raise ValueError(
            f"{len(windows_BS)} windows of {windows_BS.shape[1]} tokens cannot give {codebook_size} codewords; {need}"
        )
    shapes = {count: (shape.layers, num_quantizers * count, codebook_size, width // count) for count in groups}
    books, halves = empty_codebooks(shapes, pre_rotation), 2 if quantized == "keys_values" else 1
    batch_windows = max(1, TOKENS_AT_ONCE // windows_BS.shape[1])
    parts = [model.embed(part_BS) for part_BS in windows_BS.split(batch_windows)]
    for layer, block in enumerate(cast(Iterable[DecoderBlock], model.blocks)):
        x_NW = torch.cat(
            [to_quantize(block, x_BSD, quantized)[:, anchor_tokens:].flatten(0, 1) for x_BSD in parts]
        ).numpy()
        cluster(x_NW, layer, books, seed, progress, halves)
        del x_NW
        if layer + 1 < shape.layers:
            for index, x_BSD in enumerate(parts):
                parts[index] = block(x_BSD)
    return books


def decoder_codebooks_for(
    model: Llama | Gpt2,
    windows_BS: Tensor,
    quantized: Quantized,
    groups: Sequence[int],
    codebook_size: int,
    seed: int,
    cache_dir: Path,
    anchor_tokens: int = 0,
    progress: Progress | None = None,
    num_quantizers: int = 1,
    pre_rotation: PreRotation = "none",
) -> dict[int, Path]:
    """The files with what ``train_decoder_codebooks`` makes, one for each G; made where ``cache_dir`` has none.

    A damaged file is replaced, with a warning. ``load_codebooks`` reads a file. Raises what the former raises.
    """
    width = _checked_width(model, quantized, groups, codebook_size)

    def train(missing: list[int]) -> dict[int, Codebooks]:
        of = (quantized, missing, codebook_size, seed, anchor_tokens, progress, num_quantizers, pre_rotation)
        return train_decoder_codebooks(model, windows_BS, *of)

    recipe = {
        "decoder_recipe": RECIPE,
        "model": asdict(model.config),
        "weights": fingerprint(model),
        "windows": [list(windows_BS.shape), hashlib.sha256(windows_BS.numpy().tobytes()).hexdigest()],
        "quantized": quantized,
        "anchor_tokens": anchor_tokens,
        "num_quantizers": num_quantizers,
        "pre_rotation": pre_rotation,
        "codebook_size": codebook_size,
        "seed": seed,
    }
    shapes = {count: (model.config.layers, num_quantizers * count, codebook_size, width // count) for count in groups}
    return cached_codebooks(recipe, shapes, cache_dir, train)


def _checked_width(model: Llama | Gpt2, quantized: Quantized, groups: Sequence[int], codebook_size: int) -> int:
    """Numbers of a token that are quantized. Raises ConfigError for what cannot be."""
    check_quantized(quantized)
    width = quantized_width(model.config.shape(1), quantized)
    for count in groups:
        check_quantizer(width, count, codebook_size)
    return width
