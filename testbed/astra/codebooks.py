"""Codebooks by k-means on the embeddings of the plain model (ASTRA, arXiv 2505.19342, initialization), cached on disk.

What is clustered is what ASTRA sends: the residual stream at each layer's input, content tokens only. No fine-tuning.
Shape suffixes as in quantizer.py, and: B pictures, S sequence, N samples, W numbers of a sample.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from testbed.astra.opq import PreRotation, check_pre_rotation, pca_rotation
from testbed.astra.quantizer import Codebooks, Quantizer, check_quantizer
from testbed.astra.training.ema_quantizer import nearest_codes
from testbed.astra.training.evaluation import Examples
from testbed.datasets.photographs import photographs
from testbed.errors import EnvironmentFault
from testbed.models.vit import VisionTransformer
from testbed.models.weights import ModelChoice, save_tensors

RECIPE = 1  # to be raised with every change that alters codebooks, so that older cache files are not used
ITERATIONS = 6  # k-means gains little beyond
SAMPLES_PER_CODEWORD = 4
FEWEST_PICTURES = 4  # even where fewer give samples enough: codewords of one picture fit no other
TRAINING_SAMPLES_PER_CODEWORD = 64  # where there are labeled pictures enough
FEWEST_EXAMPLES = 256
TOKENS_AT_ONCE = 2048  # through a block; bounds the memory of activations

Progress = Callable[[int, int], None]


@torch.no_grad()
def train_codebooks(
    model: VisionTransformer,
    images_BCHW: Tensor,
    groups: Sequence[int],
    codebook_size: int,
    seed: int,
    progress: Progress | None = None,
    num_quantizers: int = 1,
    pre_rotation: PreRotation = "none",
) -> dict[int, Codebooks]:
    """Codebooks [layers, num_quantizers * G, codebook_size, hidden / G], float32, for each G of ``groups``, from one
    pass.

    images_BCHW: model input of a size that fits ``model``. num_quantizers, pre_rotation: see Quantizer.
    ``progress(done, total)`` is called after each layer and G. The same on every run with the same number of threads.

    Raises ConfigError for groups or a codebook size that cannot be, ValueError if there are fewer content tokens than
    codewords.
    """
    hidden, tokens, layers = model.shape.hidden, model.shape.tokens, model.shape.layers
    for count in groups:
        check_quantizer(hidden, count, codebook_size)
    samples = len(images_BCHW) * tokens
    if samples < codebook_size:
        need = math.ceil(codebook_size / tokens)
        raise ValueError(
            f"{len(images_BCHW)} pictures of {tokens} tokens cannot give {codebook_size} codewords; "
            f"expected {need} pictures or more"
        )
    shapes = {count: (layers, num_quantizers * count, codebook_size, hidden // count) for count in groups}
    books = empty_codebooks(shapes, pre_rotation)
    batches = images_BCHW.split(max(1, TOKENS_AT_ONCE // model.shape.sequence))
    x_BSD = torch.cat([model.embed(batch_BCHW) for batch_BCHW in batches])
    # layer by layer, so that the samples of one layer only are held at a time
    for layer, block in enumerate(model.blocks):
        x_ND = x_BSD[:, 1:].flatten(0, 1).numpy()
        cluster(x_ND, layer, books, seed, progress)
        if layer + 1 < layers:
            x_BSD = torch.cat([block(part_BSD) for part_BSD in x_BSD.split(len(batches[0]))])
    return books


def codebooks_of_examples(
    model: VisionTransformer,
    examples: Examples,
    groups: Sequence[int],
    codebook_size: int,
    seed: int,
    num_quantizers: int = 1,
    pre_rotation: PreRotation = "none",
) -> dict[int, Codebooks]:
    """Codebooks as ``train_codebooks`` makes them, of examples that ``seed`` draws: where fine-tuning starts.

    The model must be on the CPU. Raises what ``train_codebooks`` raises.
    """
    wanted = max(FEWEST_EXAMPLES, math.ceil(TRAINING_SAMPLES_PER_CODEWORD * codebook_size / model.shape.tokens))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return train_codebooks(
        model, examples.batch(order[:wanted])[0], groups, codebook_size, seed, None, num_quantizers, pre_rotation
    )


def codebooks_for(
    choice: ModelChoice,
    model: VisionTransformer,
    tokens: int,
    groups: Sequence[int],
    codebook_size: int,
    seed: int,
    cache_dir: Path,
    progress: Progress | None = None,
    num_quantizers: int = 1,
    pre_rotation: PreRotation = "none",
) -> dict[int, Path]:
    """The files with the codebooks of ``model``, one for each G of ``groups``; trained where ``cache_dir`` has none.

    ``choice`` and ``tokens`` are those that ``model`` was built of, ``seed`` draws the pictures and starts the
    k-means. A damaged file is replaced, with a warning. ``load_codebooks`` reads a file.

    Raises what ``train_codebooks`` raises, and EnvironmentFault if the package with the pictures is missing.
    """
    for count in groups:
        check_quantizer(model.shape.hidden, count, codebook_size)

    def train(missing: list[int]) -> dict[int, Codebooks]:
        pictures = max(FEWEST_PICTURES, math.ceil(SAMPLES_PER_CODEWORD * codebook_size / tokens))
        images_BCHW = photographs(tokens, choice.patch, pictures, seed)
        return train_codebooks(model, images_BCHW, missing, codebook_size, seed, progress, num_quantizers, pre_rotation)

    recipe = {"recipe": RECIPE, "model": asdict(choice), "weights": fingerprint(model), "tokens": tokens, "seed": seed}
    recipe |= {"codebook_size": codebook_size, "num_quantizers": num_quantizers, "pre_rotation": pre_rotation}
    layers, hidden = model.shape.layers, model.shape.hidden
    shapes = {count: (layers, num_quantizers * count, codebook_size, hidden // count) for count in groups}
    return cached_codebooks(recipe, shapes, cache_dir, train)


def cached_codebooks(
    recipe: Mapping[str, object],
    shapes: Mapping[int, tuple[int, int, int, int]],
    cache_dir: Path,
    train: Callable[[list[int]], dict[int, Codebooks]],
) -> dict[int, Path]:
    """The files with the codebooks of ``recipe``, one for each G of ``shapes``.

    recipe: all that they depend on but G, as JSON data. train: called with each G that ``cache_dir`` lacks, if any, or
    has damaged, of which it warns.
    """
    recipes = {count: json.dumps({**recipe, "groups": count}, sort_keys=True) for count in shapes}
    names = {count: hashlib.sha256(text.encode()).hexdigest()[:16] for count, text in recipes.items()}
    paths = {count: cache_dir / f"codebooks-{name}.safetensors" for count, name in names.items()}
    missing = [count for count, path in paths.items() if not _usable(path, shapes[count])]
    if missing:
        books = train(missing)
        for count in missing:
            save_codebooks(books[count], paths[count], recipes[count])
    return paths


def empty_codebooks(shapes: Mapping[int, tuple[int, int, int, int]], pre_rotation: PreRotation) -> dict[int, Codebooks]:
    """For ``cluster`` to fill in: codebooks of these shapes [L, I, K, d] for each G."""
    check_pre_rotation(pre_rotation)
    empty = {}
    for count, shape in shapes.items():
        layers, width = shape[0], count * shape[-1]
        rotation_LDD = None if pre_rotation == "none" else torch.empty(layers, width, width)
        empty[count] = Codebooks(torch.empty(shape), rotation_LDD)
    return empty


def save_codebooks(codebooks: Codebooks, path: Path, recipe: str = "") -> None:
    """A file for ``load_codebooks``. recipe: what they were made of, as JSON."""
    tensors = {"codebooks": codebooks.codebooks_LIKd, "pre_rotation": codebooks.rotation_LDD}
    save_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, {"recipe": recipe})


def load_codebooks(path: Path) -> Codebooks:
    """The codebooks of a file, mapped and not copied, so that processes share them.

    Raises EnvironmentFault naming a file that is missing, damaged or holds something else.
    """
    try:
        tensors = load_file(path)
        codebooks_LIKd = tensors["codebooks"]
    except (OSError, SafetensorError, KeyError) as error:
        raise EnvironmentFault(f"{path} is damaged or no file of codebooks ({error})") from error
    if codebooks_LIKd.dim() != 4 or codebooks_LIKd.dtype != torch.float32:
        found = f"{codebooks_LIKd.dtype} {list(codebooks_LIKd.shape)}"
        raise EnvironmentFault(f"{path} is damaged or no file of codebooks (they are {found})")
    return Codebooks(codebooks_LIKd, tensors.get("pre_rotation"))


def cluster(
    x_NW: np.ndarray,
    layer: int,
    books: dict[int, Codebooks],
    seed: int,
    progress: Progress | None = None,
    parts: int = 1,
) -> None:
    """Fill in a layer of the codebooks [L, num_quantizers * G, K, W / G] of each G, from samples of its W numbers.

    parts: of the W numbers, see pca_rotation. ``progress(done, total)`` is called after each G.
    """
    for position, (count, (book_LIKd, rotation_LWW)) in enumerate(books.items()):
        layers, indices, codebook_size, _ = book_LIKd.shape
        rest_NW = x_NW
        if rotation_LWW is not None:
            rotation_LWW[layer] = pca_rotation(torch.from_numpy(x_NW), count, parts)
            rest_NW = x_NW @ rotation_LWW[layer].numpy().T
        for first in range(0, indices, count):
            level_GKd = book_LIKd[layer, first : first + count]
            if first:
                before_GKd = book_LIKd[layer, first - count : first]
                codes_NG = nearest_codes(torch.from_numpy(rest_NW), before_GKd)
                rest_NW = rest_NW - Quantizer(before_GKd[None]).decode(0, codes_NG).numpy()
            for group, x_Nd in enumerate(np.split(rest_NW, count, axis=1)):
                level_GKd[group] = torch.from_numpy(_kmeans(x_Nd, codebook_size, seed))
        if progress is not None:
            progress(layer * len(books) + position + 1, layers * len(books))


def _kmeans(x_Nd: np.ndarray, codebook_size: int, seed: int) -> np.ndarray:
    """Codewords [K, d] for the samples, which must be K or more, both float32."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    faiss.cvar.distance_compute_blas_threshold = 1  # matrix products always: thrice as fast for groups of 24 numbers
    # scores of 1024 samples at a time, not 4096: the same codewords; groups of 18 numbers take 16.5 s, not 27.7
    faiss.cvar.distance_compute_blas_query_bs = 1024
    kmeans = faiss.Kmeans(
        x_Nd.shape[1],
        codebook_size,
        niter=ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,  # else a warning on stderr below 39
    )
    kmeans.train(np.ascontiguousarray(x_Nd))
    assert kmeans.centroids is not None
    return kmeans.centroids


def _usable(path: Path, shape: tuple[int, int, int, int]) -> bool:
    """Whether the file is there, whole, and has codebooks of this shape."""
    if not path.exists():
        return False
    try:
        if load_codebooks(path).codebooks_LIKd.shape == shape:
            return True
        reason = f"{path} is damaged (codebooks of another shape)"
    except EnvironmentFault as error:
        reason = str(error)
    warnings.warn(f"{reason}; training its codebooks again", stacklevel=4)
    return False


def fingerprint(model: nn.Module) -> str:
    """A hash of the first numbers of every tensor, so that fine-tuned weights get their own codebooks."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.flatten()[:64].numpy().tobytes())
    return digest.hexdigest()
