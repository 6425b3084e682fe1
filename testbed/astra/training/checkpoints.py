"""Files of a training run: a checkpoint from which it resumes, and the result that a distributed run loads.

Both are safetensors files with JSON in the header, never pickles, and are written atomically. A checkpoint has no state
of random generators, because each step seeds them from the run's seed and the step's number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from testbed.astra.training.decoder import AstraDecoder
from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings
from testbed.astra.training.vit import AstraVit, Student
from testbed.errors import EnvironmentFault
from testbed.models.decoders import DecoderChoice
from testbed.models.gpt2 import Gpt2Config
from testbed.models.llama import LlamaConfig
from testbed.models.tensor_files import UnusableFile, read_tensors
from testbed.models.vit import VisionTransformer, VitConfig
from testbed.models.weights import save_tensors
from testbed.results.atomic_write import replacing

STATE = "state"  # the header's key of the JSON
CODEBOOKS, ROTATION = "codebooks", "pre_rotation"
_MODEL, _QUANTIZER, _OPTIMIZER = "model.", "quantizer.", "optimizer."


def save_checkpoint(path: Path, student: Student, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Write model, codebooks, optimizer, and ``state`` as JSON: all that the rest of a run depends on."""
    tensors = dict(student.state_dict()) | _optimizer_tensors(optimizer)
    _save(path, tensors, state)


def checkpoint_state(path: Path) -> dict[str, Any]:
    """The ``state`` of ``save_checkpoint``. Raises EnvironmentFault if the file is missing or damaged."""
    return _read(path)[1]


def load_checkpoint(path: Path, student: Student, optimizer: torch.optim.Optimizer) -> None:
    """Fill model, codebooks and optimizer from ``save_checkpoint``.

    Raises EnvironmentFault if the file is missing, damaged or of another model; then nothing is changed.
    """
    tensors, _ = _read(path)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    expected = {name: list(value.shape) for name, value in student.state_dict().items()}
    for index, parameter in enumerate(parameters):
        expected |= {_OPTIMIZER + f"{index}.exp_avg{end}": list(parameter.shape) for end in ("", "_sq")}
        expected[_OPTIMIZER + f"{index}.step"] = []
    _check(path, tensors, expected)
    student.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(_OPTIMIZER)})
    moments: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(parameters))}
    for name, value in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, _, key = name.removeprefix(_OPTIMIZER).partition(".")
            moments[int(index)][key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def save_result(path: Path, student: Student) -> None:
    """Write the weights and codebooks [L, I, K, d], if there are any, without what only training needs."""
    tensors = {_MODEL + name: value for name, value in student.model.state_dict().items()}
    if student.quantizer is not None:
        tensors[CODEBOOKS] = student.quantizer.codebooks_LIKd
        if student.quantizer.rotation_LDD is not None:
            tensors[ROTATION] = student.quantizer.rotation_LDD
    _save(path, tensors, student.describe())


def load_result(path: Path, student: Student) -> None:
    """Fill a student from ``save_result``. The moving averages of its codebooks restart from the loaded codewords.

    Raises EnvironmentFault if the file is missing, damaged or of another model or codebook.
    """
    tensors, _ = _read(path)
    expected = {_MODEL + name: list(value.shape) for name, value in student.model.state_dict().items()}
    if student.quantizer is not None:
        expected[CODEBOOKS] = list(student.quantizer.codebooks_LIKd.shape)
        if student.quantizer.rotation_LDD is not None:
            expected[ROTATION] = list(student.quantizer.rotation_LDD.shape)
    _check(path, tensors, expected)
    codebooks, pre_rotation = tensors.pop(CODEBOOKS, None), tensors.pop(ROTATION, None)
    student.model.load_state_dict({name.removeprefix(_MODEL): value for name, value in tensors.items()})
    if student.quantizer is not None and codebooks is not None:
        on = student.quantizer.codebooks_LIKd.device
        student.quantizer = VectorQuantizer(codebooks, student.quantizer.settings, pre_rotation).to(on)


def open_result(path: Path, config: VitConfig) -> AstraVit:
    """The ViT of a result file, in eval mode, with the file's codebooks and settings.

    Raises EnvironmentFault if the file is missing, damaged or of another model.
    """
    described, quantizer = _described(path, config)
    with torch.device("meta"):
        model = VisionTransformer(config)
    student = AstraVit(model.to_empty(device="cpu"), quantizer, described["class_tokens"], described["int8_tokens"])
    load_result(path, student)
    return student.eval()


def open_decoder(path: Path, config: LlamaConfig | Gpt2Config) -> AstraDecoder:
    """The Llama or GPT-2 of a result file; see ``open_result``."""
    described, quantizer = _described(path, config)
    with torch.device("meta"):
        model = DecoderChoice("", config).skeleton(described["tokens"])
    own = {key: described[key] for key in ("tokens", "quantized", "anchor_tokens", "int8_tokens")}
    student = AstraDecoder(model.to_empty(device="cpu"), quantizer=quantizer, **own)
    load_result(path, student)
    return student.eval()


def _described(
    path: Path, config: VitConfig | LlamaConfig | Gpt2Config
) -> tuple[dict[str, Any], VectorQuantizer | None]:
    """The settings that ``save_result`` wrote, for a model of this config, and its quantizer."""
    tensors, described = _read(path)
    if described.get("model") != asdict(config):
        found = described.get("model")
        raise EnvironmentFault(f"{path}: holds a model of sizes {found}; expected {asdict(config)}")
    described = {"int8_tokens": 0, **described}  # older files lack it, as they lack num_quantizers
    if CODEBOOKS not in tensors:
        return described, None
    settings = VqSettings(num_quantizers=described["quantizer"].get("num_quantizers", 1))
    return described, VectorQuantizer(tensors[CODEBOOKS], settings, tensors.get(ROTATION))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(data, indent=2, default=str) + "\n")


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {_OPTIMIZER + f"{index}.{key}": value for index, of in state.items() for key, value in of.items()}


def _save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    # copies, because safetensors refuses tensors that share memory
    on_cpu = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    save_tensors(on_cpu, path, {STATE: json.dumps(state)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, the JSON object in the header). Raises EnvironmentFault, also for numbers that are not finite."""
    expected = "expected a safetensors file that training wrote"
    try:
        tensors, metadata = read_tensors(path)
    except UnusableFile as error:
        raise EnvironmentFault(f"{path} {error.reason}; {expected}") from error
    try:
        state = json.loads(metadata[STATE])
    except (KeyError, ValueError):
        state = None
    if not isinstance(state, dict):
        raise EnvironmentFault(f"{path} has no state of a training run in its header; {expected}")
    return tensors, state


def _check(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, list[int]]) -> None:
    """Raise EnvironmentFault for the first tensor that is missing, unexpected, or of another shape."""
    for name, shape in expected.items():
        found = list(tensors[name].shape) if name in tensors else "none"
        if found != shape:
            raise EnvironmentFault(f"{path}: tensor {name} is {found}; expected {shape}: the file is of another model")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise EnvironmentFault(f"{path}: holds {extra[0]}, expected none: the file is of another model")
