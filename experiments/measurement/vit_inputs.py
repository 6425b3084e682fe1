"""What every actor needs before the first point: weights, the input, codebooks, and what single computes."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from testbed.astra.codebooks import codebooks_for, save_codebooks
from testbed.astra.quantizer import Codebooks
from testbed.astra.training.checkpoints import open_result
from testbed.astra.training.vit import AstraVit, Student
from testbed.config.fields import ROOT
from testbed.config.schema import LatencyConfig
from testbed.datasets.photographs import photograph
from testbed.errors import ConfigError
from testbed.grid import Point
from testbed.methods.base import Method
from testbed.models.decoders import DecoderChoice
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama
from testbed.models.vit import VisionTransformer
from testbed.models.weights import ModelChoice, build_model, load_model, save_model, save_tensors
from testbed.network.sandbox import scratch
from testbed.progress import counted

CACHE = ROOT / ".cache"
CodebookFiles = dict[tuple[Any, ...], Path]
POSITIONS = "position"  # the only tensor that depends on the number of tokens


@dataclass
class Assets:
    """Weights files, model and input of a run for one number of tokens, and the reference for methods.

    weights: for ``load_model``. hidden: [T, D] normalized last states of the content tokens on one device; logits:
    [classes]. codebooks: files, by ``Method.codebook_key``. core_macs_per_s: what one core of this machine computes.
    """

    choice: ModelChoice | DecoderChoice
    model: VisionTransformer | Llama | Gpt2
    weights: list[Path]
    inputs: Tensor
    hidden: Tensor
    logits: Tensor
    codebooks: CodebookFiles
    core_macs_per_s: float


def prepare_vit_inputs(config: LatencyConfig, points: list[Point]) -> dict[int, Assets]:
    """Build the ViT, or take the trained one, see to codebooks, and run single; for each of the points' tokens.

    Codebooks are the trained model's, or made here where the cache has none (a minute for the paper's shape); of
    several numbers of tokens, for the smallest, as neither bytes nor time depend on what is in them. Raises
    ConfigError where the methods want others than the trained model has, or other tokens.
    """
    choice = ModelChoice(**asdict(config.model))
    methods, tokens = methods_of(points), tokens_of(config, points)
    weights = scratch() / "weights.safetensors"
    if config.checkpoint:
        student = open_result(Path(config.checkpoint), choice.vit_config(tokens[0]))
        codebooks = _trained_codebooks(student, methods, config.checkpoint)
        save_model(student.model, weights)
    else:
        model = build_model(choice, tokens[0], config.seed)
        save_model(model, weights)
        codebooks = _codebooks(config, choice, model, methods)
    files = {tokens[0]: [weights]}
    for count in tokens[1:]:
        files[count] = [weights, scratch() / f"positions-{count}.safetensors"]
        positions = build_model(choice, count, config.seed).state_dict()[POSITIONS]
        save_tensors({POSITIONS: positions.contiguous()}, files[count][1])
    return {
        count: assets_of(choice, count, files[count], photograph(count, choice.patch), codebooks) for count in tokens
    }


@torch.no_grad()
def assets_of(
    choice: ModelChoice | DecoderChoice, tokens: int, weights: list[Path], inputs: Tensor, codebooks: CodebookFiles
) -> Assets:
    """The model of these files, its input, and what one device makes of it."""
    model = load_model(choice, tokens, *weights)
    x_BSD = model.embed(inputs)
    for block in model.blocks:
        x_BSD = block(x_BSD)
    x_BSD = model.norm(x_BSD)
    logits = model.classify(x_BSD[:, 0])[0] if isinstance(model, VisionTransformer) else model.logits(x_BSD[0, -1])
    hidden = x_BSD[0, model.shape.class_tokens :]
    return Assets(choice, model, weights, inputs, hidden, logits, codebooks, core_macs_per_s(model, inputs))


def _codebooks(
    config: LatencyConfig, choice: ModelChoice, model: VisionTransformer, methods: list[Method]
) -> CodebookFiles:
    """Files of k-means codebooks for the methods that need some."""
    codebooks: CodebookFiles = {}
    tokens = model.config.tokens
    kinds = {
        (method.codebook_size, method.num_quantizers, method.pre_rotation) for method in methods if method.codebook_size
    }
    for kind in sorted(kinds):
        alike = [
            method for method in methods if (method.codebook_size, method.num_quantizers, method.pre_rotation) == kind
        ]
        size, num_quantizers, pre_rotation = kind[0], kind[1], alike[0].pre_rotation
        groups = sorted({method.groups for method in alike})
        made = f"G = {', '.join(map(str, groups))}" + (
            f", {num_quantizers} num_quantizers" if num_quantizers > 1 else ""
        )
        begin = time.monotonic()
        with counted(f"codebooks of {size} codewords, {made}: k-means on photographs, or the cache") as report:
            of = (groups, size, config.seed, CACHE, report, num_quantizers)
            found = codebooks_for(choice, model, tokens, *of, pre_rotation)  # pyright: ignore[reportArgumentType]
        print(f"codebooks ready in {time.monotonic() - begin:.1f} s")
        codebooks |= {method.codebook_key: found[method.groups] for method in alike}
    return codebooks


def _trained_codebooks(student: AstraVit, methods: list[Method], checkpoint: str) -> CodebookFiles:
    """A file of the trained model's codebooks."""
    if student.class_tokens != "distributed":
        raise ConfigError("checkpoint", checkpoint, "must be a model with distributed class tokens")
    return trained_codebooks(student, {}, methods, checkpoint)


def trained_codebooks(student: Student, own: dict[str, Any], methods: list[Method], checkpoint: str) -> CodebookFiles:
    """A file of a trained model's codebooks. ConfigError where it has none, or a method wants others.

    own: settings of ASTRA that the model was trained with, besides the codebooks' sizes.
    """
    quantizer = student.quantizer
    if quantizer is None:
        raise ConfigError("checkpoint", checkpoint, "must be a model with codebooks")
    if student.int8_tokens:
        made = f"was trained with int8_tokens={student.int8_tokens}"
        raise ConfigError("checkpoint", checkpoint, f"{made}, which is judged in simulation only: methods send none")
    needed = {"groups": quantizer.groups, "codebook_size": quantizer.codebook_size, **own}
    needed |= {"num_quantizers": quantizer.settings.num_quantizers, "pre_rotation": quantizer.pre_rotation}
    for method in methods:
        if method.codebook_size and any(getattr(method, key) != value for key, value in needed.items()):
            settings = " ".join(f"{method.name}.{key}={value}" for key, value in needed.items())
            raise ConfigError("checkpoint", checkpoint, f"needs {settings}")
    path = scratch() / "codebooks.safetensors"
    save_codebooks(Codebooks(quantizer.codebooks_LIKd.contiguous(), quantizer.rotation_LDD), path)
    return {method.codebook_key: path for method in methods if method.codebook_size}


def methods_of(points: list[Point]) -> list[Method]:
    """Each variant of them once."""
    return [point.load() for point in {(point.method, point.settings): point for point in points}.values()]


def tokens_of(config: LatencyConfig, points: list[Point]) -> list[int]:
    """Numbers of tokens of the points. ConfigError for several of a trained model."""
    if config.checkpoint and len(config.tokens) > 1:
        raise ConfigError("tokens", config.tokens, "must be one number, that of the checkpoint")
    return sorted({point.tokens for point in points})


def core_macs_per_s(model: VisionTransformer | Llama | Gpt2, inputs: Tensor) -> float:
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
