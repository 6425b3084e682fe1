"""What every actor needs before the first point: weights, the input picture, codebooks, and what single computes."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from testbed.astra.checkpoints import open_result
from testbed.astra.codebooks import codebooks_for, save_codebooks
from testbed.astra.simulation import AstraVit
from testbed.data import photograph
from testbed.errors import ConfigError
from testbed.methods.base import Method
from testbed.models.vit import VisionTransformer
from testbed.models.weights import ModelChoice, build_model, load_model, save_model
from testbed.network.sandbox import scratch
from testbed.progress import counted
from testbed.schema import ROOT, LatencyConfig

CACHE = ROOT / ".cache"


@dataclass
class Assets:
    """Weights file, model and input of a run, and the reference that methods are compared with.

    hidden: [T, D] normalised last states of the content tokens on one device; logits: [classes].
    codebooks: file of each (groups, codebook_size). core_macs_per_s: what one core of this machine computes.
    """

    choice: ModelChoice
    model: VisionTransformer
    weights: Path
    inputs: Tensor
    hidden: Tensor
    logits: Tensor
    codebooks: dict[tuple[int, int], Path]
    core_macs_per_s: float


def prepare(config: LatencyConfig, methods: list[Method]) -> Assets:
    """Build the model, or take the trained one, see to codebooks, and run single.

    Codebooks are the trained model's, or made here where the cache has none (a minute for the paper's shape). Raises
    ConfigError where the methods want others than the trained model has.
    """
    choice = ModelChoice(**asdict(config.model))
    weights = scratch() / "weights.safetensors"
    inputs = photograph(config.tokens, choice.patch)
    if config.checkpoint:
        student = open_result(Path(config.checkpoint), choice.vit_config(config.tokens))
        codebooks = _trained_codebooks(student, methods, config.checkpoint)
        save_model(student.model, weights)
        model = load_model(choice, config.tokens, weights)
    else:
        save_model(build_model(choice, config.tokens, config.seed), weights)
        model = load_model(choice, config.tokens, weights)
        codebooks = _codebooks(config, choice, model, methods)
    with torch.no_grad():
        x_BSD = model.embed(inputs)
        for block in model.blocks:
            x_BSD = block(x_BSD)
        x_BSD = model.norm(x_BSD)
        logits = model.classify(x_BSD[:, 0])[0]
    hidden = x_BSD[0, model.shape.class_tokens :]
    return Assets(choice, model, weights, inputs, hidden, logits, codebooks, core_macs_per_s(model, inputs))


def _codebooks(
    config: LatencyConfig, choice: ModelChoice, model: VisionTransformer, methods: list[Method]
) -> dict[tuple[int, int], Path]:
    """Files of k-means codebooks for the methods that need some."""
    codebooks: dict[tuple[int, int], Path] = {}
    for size in sorted({method.codebook_size for method in methods if method.codebook_size}):
        groups = sorted({method.groups for method in methods if method.codebook_size == size})
        title = (
            f"codebooks of {size} codewords, G = {', '.join(map(str, groups))}: k-means on photographs, or the cache"
        )
        begin = time.monotonic()
        with counted(title) as report:
            found = codebooks_for(choice, model, config.tokens, groups, size, config.seed, CACHE, report)
        print(f"codebooks ready in {time.monotonic() - begin:.1f} s")
        codebooks |= {(count, size): path for count, path in found.items()}
    return codebooks


def _trained_codebooks(student: AstraVit, methods: list[Method], checkpoint: str) -> dict[tuple[int, int], Path]:
    """A file of the trained model's codebooks."""
    if student.quantizer is None or student.class_tokens != "distributed":
        raise ConfigError("checkpoint", checkpoint, "must be a model with codebooks and distributed class tokens")
    books_LGKd = student.quantizer.codebooks_LGKd.contiguous()
    _, groups, size, _ = books_LGKd.shape
    for method in methods:
        if method.codebook_size and (method.groups, method.codebook_size) != (groups, size):
            raise ConfigError(
                "checkpoint", checkpoint, f"needs {method.name}.groups={groups} {method.name}.codebook_size={size}"
            )
    path = scratch() / "codebooks.safetensors"
    save_codebooks(books_LGKd, path)
    return {(groups, size): path}


def core_macs_per_s(model: VisionTransformer, inputs: Tensor) -> float:
    """Multiply-accumulates per second that one core reaches in one block of the model; the better of two tries."""
    s, shape = model.shape.sequence, model.shape
    macs = shape.query_macs(s) + shape.key_value_macs(s) + shape.attend_macs(s, s) + shape.finish_macs(s)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            x_BSD = model.embed(inputs)
            times = []
            for _ in range(2):
                begin = time.monotonic()
                model.blocks[0](x_BSD)
                times.append(time.monotonic() - begin)
    finally:
        torch.set_num_threads(threads)
    return macs / min(times)
