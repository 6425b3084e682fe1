"""What a run needs of a model, of any kind: its files, an input, the reference result of one device, and codebooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.codebooks import save_codebooks
from testbed.astra.kmeans import Progress
from testbed.astra.quantizer import Codebooks
from testbed.astra.training.vit import Student
from testbed.config.fields import ROOT
from testbed.config.schema import LatencyConfig
from testbed.errors import ConfigError
from testbed.grid import Point
from testbed.models.decoders import DecoderChoice
from testbed.models.gpt2 import Gpt2
from testbed.models.llama import Llama
from testbed.models.vit import VisionTransformer
from testbed.models.weights import ModelChoice, in_float64, load_model
from testbed.network.sandbox import scratch
from testbed.progress import counted
from testbed.results.cache import cache_folder

CACHE = cache_folder(ROOT / ".cache")
CodebookFiles = dict[CodebookSpec, Path]
Model = VisionTransformer | Llama | Gpt2


class Result(NamedTuple):
    """What an inference returns.

    hidden: [T, D], normalized last states of the content tokens. logits: [classes], or [vocabulary] of the next token.
    """

    hidden: Tensor
    logits: Tensor


@dataclass
class Assets:
    """The model and input of a run for one number of tokens, and the reference that methods are verified against.

    weights: files for ``load_model``. result: of one device. exact: the same in float64. codebooks: the file for each
    method's ``codebook_spec``. core_macs_per_s: multiply-accumulates per second of one core of this machine.
    """

    choice: ModelChoice | DecoderChoice
    model: Model
    weights: list[Path]
    inputs: Tensor
    result: Result
    exact: Result
    codebooks: CodebookFiles
    core_macs_per_s: float

    @property
    def in_float64(self) -> tuple[Model, Tensor]:
        """(the model, the input) in float64. Whoever asks for them frees them: they take twice the model's memory."""
        return in_float64(self.choice, self.model, self.model.shape.tokens), wide(self.inputs)


def assets_of(
    choice: ModelChoice | DecoderChoice, tokens: int, weights: list[Path], inputs: Tensor, codebooks: CodebookFiles
) -> Assets:
    """Load the model from these files and run it on one device, in float32 and in float64.

    Raises ConfigError (key ``model``) if the result is not finite: every method would then be compared with NaN.
    """
    model = load_model(choice, tokens, *weights)
    result = one_device(model, inputs)
    if not all(tensor.isfinite().all() for tensor in result):
        raise ConfigError("model", choice.name, "gives NaN or infinity on one device; expected finite results")
    exact = one_device(in_float64(choice, model, tokens), wide(inputs))
    return Assets(choice, model, weights, inputs, result, exact, codebooks, core_macs_per_s(model, inputs))


@torch.no_grad()
def one_device(model: Model, inputs: Tensor) -> Result:
    """The plain model's result, in its own precision."""
    x_BSD = model.embed(inputs)
    for block in model.blocks:
        x_BSD = block(x_BSD)
    x_BSD = model.norm(x_BSD)
    logits = model.classify(x_BSD[:, 0])[0] if isinstance(model, VisionTransformer) else model.logits(x_BSD[0, -1])
    return Result(x_BSD[0, model.shape.class_tokens :], logits)


def wide(inputs: Tensor) -> Tensor:
    """Pixels in float64; token ids as they are."""
    return inputs.double() if inputs.is_floating_point() else inputs


def tokens_of(config: LatencyConfig, points: list[Point]) -> list[int]:
    """The points' numbers of tokens, ascending. Raises ConfigError for several with a checkpoint, which has one."""
    if config.checkpoint and len(config.tokens) > 1:
        raise ConfigError("tokens", config.tokens, "must be one number, that of the checkpoint")
    return sorted({point.tokens for point in points})


def codebook_specs(points: list[Point]) -> list[CodebookSpec]:
    """The codebooks that the points' methods need, each once, in the order of the points."""
    variants = {(point.method, point.settings): point for point in points}
    specs = (point.load().codebook_spec for point in variants.values())
    return list(dict.fromkeys(spec for spec in specs if spec is not None))


def kmeans_codebooks(
    specs: Iterable[CodebookSpec], train: Callable[[list[CodebookSpec], Progress], CodebookFiles]
) -> CodebookFiles:
    """The file of each spec, with progress shown.

    train: returns the files of specs that differ in groups only, from the cache or trained in one pass over the model.
    """
    families: dict[CodebookSpec, list[CodebookSpec]] = {}
    for spec in specs:
        families.setdefault(replace(spec, groups=1), []).append(spec)
    files: CodebookFiles = {}
    for family in families.values():
        begin = time.monotonic()
        with counted(f"codebooks ({'; '.join(spec.label for spec in family)}): k-means, or the cache") as report:
            files |= train(family, report)
        print(f"codebooks ready in {time.monotonic() - begin:.1f} s")
    return files


def trained_codebooks(student: Student, specs: Iterable[CodebookSpec], checkpoint: str) -> CodebookFiles:
    """A file with a trained model's codebooks, for all ``specs``.

    Raises ConfigError (key ``checkpoint``) for a model without codebooks or with int8 tokens, and for a spec that
    differs from the model's.
    """
    quantizer, trained = student.quantizer, student.codebook_spec
    if quantizer is None or trained is None:
        raise ConfigError("checkpoint", checkpoint, "must be a model with codebooks")
    if student.int8_tokens:
        made = f"was trained with int8_tokens={student.int8_tokens}"
        raise ConfigError("checkpoint", checkpoint, f"{made}, which is evaluated in simulation only: methods send none")
    files: CodebookFiles = {}
    path = scratch() / "codebooks.safetensors"
    for spec in specs:
        if spec != trained:
            needed = " ".join(f"astra.{key}={value}" for key, value in trained.recipe.items())
            raise ConfigError("checkpoint", checkpoint, f"needs {needed}")
        files[spec] = path
    save_codebooks(Codebooks(quantizer.codebooks_LIKd.contiguous(), quantizer.rotation_LDD), path)
    return files


def core_macs_per_s(model: Model, inputs: Tensor) -> float:
    """Multiply-accumulates per second that one core reaches in one block of the model; the better of two tries."""
    s, shape = model.shape.sequence, model.shape
    macs = shape.layer(s).macs
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
