"""Weights of models: drawn from a seed, or read from files that processes share.

``build_model`` makes a Vision Transformer of seeded random weights, or a pretrained one. ``save_model`` writes weights
in safetensors, ``load_model`` maps them into memory.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from testbed.errors import ConfigError, EnvironmentFault, nearest
from testbed.models import vit_s14
from testbed.models.shape import MOST_LAYERS
from testbed.models.tensor_files import read_tensors
from testbed.models.vit import VisionTransformer, VitConfig
from testbed.results.atomic_write import replacing, writing

FLOAT_BYTES, GB = 4, 1e9
BIAS_STD = 0.02  # not zero, so that a comparison shows a bias that is lost or added twice
POSITION_STD = 0.02
QUERY_KEY_GAIN = 1.5  # on a photograph, a query of ViT-Base then attends to about half of the keys, not to nearly all

M = TypeVar("M", bound=nn.Module)
M_co = TypeVar("M_co", bound=nn.Module, covariant=True)


class Choice(Protocol[M_co]):
    """A model by name and sizes. Any process can build it without weights and fill it from files."""

    @property
    def name(self) -> str:
        """The name of the model in messages."""
        ...

    def skeleton(self, tokens: int) -> M_co:
        """The model for images, or prompts, of ``tokens`` content tokens."""
        ...


@dataclass(frozen=True)
class ModelChoice:
    """A Vision Transformer as the configuration describes it. The MLP has 4 * ``hidden`` columns.

    patch: side of a patch in pixels. pretrained: weights come from a package, not from a seed.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    patch: int
    classes: int
    pretrained: bool

    def vit_config(self, tokens: int) -> VitConfig:
        """The sizes for ``tokens`` content tokens. Raises ConfigError for sizes that no model has."""
        for key in ("layers", "hidden", "heads", "patch", "classes"):
            if getattr(self, key) < 1:
                raise ConfigError(f"model.{key}", getattr(self, key), "must be 1 or more")
        if tokens < 1:
            raise ConfigError("tokens", tokens, "must be 1 or more")
        if self.layers > MOST_LAYERS:
            allowed = f"must be at most {MOST_LAYERS}, except with network=analytic, which builds no model"
            raise ConfigError("model.layers", self.layers, allowed)
        self._check_memory(tokens)
        if self.hidden % self.heads:
            raise ConfigError("model.heads", self.heads, f"must divide the hidden width {self.hidden}")
        if self.pretrained:
            self._check_pretrained()
        return VitConfig(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            patch=self.patch,
            tokens=tokens,
            classes=self.classes,
            layer_scale=self.pretrained,
        )

    def skeleton(self, tokens: int) -> VisionTransformer:
        """The model for ``tokens`` content tokens. Raises ConfigError as ``vit_config`` does."""
        return VisionTransformer(self.vit_config(tokens))

    def _check_memory(self, tokens: int) -> None:
        rows = 3 * self.patch**2 + tokens + self.classes  # of the matrices outside the layers
        needed = FLOAT_BYTES * self.hidden * (12 * self.layers * self.hidden + rows)
        there = psutil.virtual_memory().total
        if needed > there:
            allowed = f"makes weights of {needed / GB:.1f} GB together with the other sizes; this machine has"
            raise ConfigError("model.hidden", self.hidden, f"{allowed} {there / GB:.1f} GB of memory")

    def _check_pretrained(self) -> None:
        if self.name not in PRETRAINED:
            raise ConfigError("model.name", self.name, nearest(self.name, PRETRAINED))
        shipped = PRETRAINED[self.name]
        if self != replace(shipped, classes=self.classes):  # the head is not pretrained, so its width is free
            changed = [k for k in ("layers", "hidden", "heads", "patch") if getattr(self, k) != getattr(shipped, k)]
            allowed = f"only {getattr(shipped, changed[0])}: the sizes of pretrained {self.name} are fixed"
            raise ConfigError(f"model.{changed[0]}", getattr(self, changed[0]), allowed)


PRETRAINED = {"vit_s14": ModelChoice("vit_s14", vit_s14.LAYERS, 384, 6, 14, 1000, pretrained=True)}


def build_model(choice: ModelChoice, tokens: int, seed: int) -> VisionTransformer:
    """The model in eval mode, fp32, without gradients.

    Each tensor of a seeded model has its own generator, seeded by (seed, name of the tensor). A model of fewer layers
    therefore equals the first layers of a deeper one, and ``tokens`` changes only the position embeddings. In a
    pretrained model ``seed`` draws the head only.

    Raises ConfigError for impossible sizes, EnvironmentFault if the package with the weights is missing.
    """
    model = _skeleton(choice, tokens)
    drawn = {name: t for name, t in model.state_dict().items() if not choice.pretrained or name.startswith("head.")}
    state = {name: _draw(name, t.shape, seed) for name, t in drawn.items()}
    if choice.pretrained:
        state |= vit_s14.backbone_state(tokens)
    return _fill(model, state)


def in_float64(choice: Choice[M], model: M, tokens: int) -> M:
    """The same model in float64. Its weights take twice the memory of ``model``'s, beside them."""
    return _fill(_skeleton(choice, tokens), {name: tensor.double() for name, tensor in model.state_dict().items()})


def save_model(model: nn.Module, path: Path) -> None:
    """Write the weights to ``path`` for ``load_model``. The file appears whole or not at all."""
    save_tensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def load_model(choice: Choice[M], tokens: int, *paths: Path) -> M:
    """The model that ``save_model`` wrote. Its weights are mapped from the file, not copied.

    paths: where several files hold the same tensor, the last file counts. A test verifies in /proc/self/smaps that all
    resident pages still belong to the file after a forward pass. Processes that load the same file therefore share one
    copy in memory.

    Raises EnvironmentFault if a file is missing, damaged, or holds another model or numbers that are not finite.
    """
    path = paths[0]
    try:
        state: dict[str, Tensor] = {}
        for path in paths:
            state |= read_tensors(path)[0]
        if others := {str(tensor.dtype) for tensor in state.values()} - {"torch.float32"}:
            raise ValueError(f"it holds {', '.join(sorted(others))}; expected torch.float32")
        return _fill(_skeleton(choice, tokens), state)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < 200 else f"{reason[:200]}..."
        message = f"{path}: no usable weights of {choice.name} at {tokens} tokens; build the file again ({reason})"
        raise EnvironmentFault(message) from error


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, which appears whole or not at all. The folder is made if it is missing.

    Raises TestbedError, which names the file, if it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:  # what safetensors raises for a full disk
            raise OSError(str(error)) from error


def _skeleton(choice: Choice[M], tokens: int) -> M:
    """The model on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return choice.skeleton(tokens)


def _fill(model: M, state: dict[str, Tensor]) -> M:
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _draw(name: str, shape: torch.Size, seed: int) -> Tensor:
    """One seeded tensor. Matrices keep the variance of their input: std 1 / sqrt(fan-in), more for queries and keys.

    With the usual std of 0.02 attention would be nearly uniform, and a block would hardly change the residual stream.
    An error in either would then hide in the rounding.
    """
    if "norm" in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    values = torch.randn(shape, generator=generator)
    if name.endswith("weight"):
        gain = QUERY_KEY_GAIN if ".attn.q." in name or ".attn.k." in name else 1
        return values.mul_(gain / math.sqrt(shape[-1]))
    return values.mul_(BIAS_STD if name.endswith("bias") else POSITION_STD)
