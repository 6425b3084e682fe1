"""Names of sizes and tensors in Llama, GPT-2 and ViT checkpoints in hub format, and the options that are supported.

The names are those that the classes LlamaForCausalLM, GPT2LMHeadModel and ViTForImageClassification of the package
transformers save, up to version 5. An unsupported option that would change the arithmetic raises FieldError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from testbed.models.gpt2 import Gpt2, Gpt2Config
from testbed.models.llama import Llama, LlamaConfig, Rotary, RotaryScaling
from testbed.models.vit import VisionTransformer, VitConfig

LARGEST = 10_000_000  # of any size in config.json; a larger one is a mistake and would overflow


class FieldError(ValueError):
    """An unusable field of config.json. The message names the field and the supported values."""


class Fields:
    """Fields of config.json, or of an object in it. Methods check types and raise FieldError."""

    def __init__(self, values: Mapping[str, object], prefix: str = ""):
        self.values, self.prefix = values, prefix

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number of 1 or more. Where it is missing or null: ``default``, or an error without default."""
        value = self._get(name, default)
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise self.error(name, f"a whole number from 1 to {LARGEST}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0; ``default`` as in ``integer``."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
            raise self.error(name, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false; ``default`` where it is missing or null."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def inner(self, name: str) -> Fields:
        """An object in this one; empty where it is missing or null."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, "an object or null")
        return Fields(value, f"{self.prefix}{name}.")

    def only(self, name: str, *allowed: object) -> None:
        """Raise FieldError for a value that is not in ``allowed``. A missing field or null has the first of them."""
        if self._get(name, allowed[0]) not in allowed:
            raise self.error(name, " or ".join("null" if value is None else str(value) for value in allowed))

    def error(self, name: str, allowed: str) -> FieldError:
        """The error for a field whose value is not in ``allowed``."""
        shown = str(self.values[name]) if name in self.values else "missing"
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        return FieldError(f"{self.prefix}{name} is {shown}; supported: {allowed}")

    def _get(self, name: str, default: object) -> object:
        value = self.values.get(name)
        return default if value is None else value


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint: its shape, and the tensors of the model that it fills."""

    shape: tuple[int, ...]
    fill: Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Layout:
    """A model on the meta device, and the tensors of the checkpoint that hold its weights.

    prefix: precedes all names except those of the head; absent in checkpoints that were saved without a head.
    unused: matches other tensors that checkpoints may hold: buffers, and parts that the head does not need.
    """

    model: nn.Module
    prefix: str
    sources: dict[str, Source]
    unused: re.Pattern[str]


def llama_layout(fields: Fields) -> Layout:
    """LlamaForCausalLM."""
    fields.only("hidden_act", "silu")
    fields.only("sliding_window", None)
    for name in ("attention_bias", "mlp_bias", "rope_interleaved"):
        fields.only(name, False)
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    key_value_heads = fields.integer("num_key_value_heads", heads)
    if heads % key_value_heads:
        raise fields.error("num_key_value_heads", f"divisors of the {heads} heads")
    head_width = fields.integer("head_dim", _divided(fields, "hidden_size", heads))
    if head_width % 2:
        raise FieldError(
            f"the width of a head is {head_width}; supported: even numbers, because rotary embeddings rotate pairs"
        )
    config = LlamaConfig(
        layers=fields.integer("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        key_value_heads=key_value_heads,
        head_width=head_width,
        mlp_hidden=fields.integer("intermediate_size"),
        vocabulary=fields.integer("vocab_size"),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rotary=_rotary(fields, head_width),
        tied=fields.flag("tie_word_embeddings", False),
    )
    with torch.device("meta"):
        model = Llama(config)
    shapes = _shapes(model)
    sources = _renamed(shapes, {"embed_tokens": "token_embed", "norm": "norm"})
    if not config.tied:
        sources |= _renamed(shapes, {"lm_head": "head"})
    parts = {
        "input_layernorm": "norm1",
        "self_attn.q_proj": "attn.q",
        "self_attn.k_proj": "attn.k",
        "self_attn.v_proj": "attn.v",
        "self_attn.o_proj": "attn.proj",
        "post_attention_layernorm": "norm2",
        "mlp.gate_proj": "mlp.gate",
        "mlp.up_proj": "mlp.up",
        "mlp.down_proj": "mlp.down",
    }
    for i in range(config.layers):
        sources |= _renamed(shapes, {f"layers.{i}.{theirs}": f"blocks.{i}.{ours}" for theirs, ours in parts.items()})
    unused = r".*\.rotary_emb\.inv_freq" + (r"|lm_head\.weight" if config.tied else "")
    return Layout(model, "model.", sources, re.compile(unused))


def gpt2_layout(fields: Fields) -> Layout:
    """GPT2LMHeadModel. Linear layers are stored as [inputs, outputs]; queries, keys and values are side by side."""
    fields.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    fields.only("add_cross_attention", False)
    hidden, heads = fields.integer("n_embd"), fields.integer("n_head")
    _divided(fields, "n_embd", heads)
    config = Gpt2Config(
        layers=fields.integer("n_layer"),
        hidden=hidden,
        heads=heads,
        mlp_hidden=fields.integer("n_inner", 4 * hidden),
        vocabulary=fields.integer("vocab_size"),
        positions=fields.integer("n_positions"),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        tied=fields.flag("tie_word_embeddings", True),
    )
    with torch.device("meta"):
        model = Gpt2(config)
    shapes = _shapes(model)
    sources = _renamed(shapes, {"wte": "token_embed", "wpe": "position", "ln_f": "norm"})
    if not config.tied:
        sources |= _renamed(shapes, {"lm_head": "head"})
    for i in range(config.layers):
        sources |= _renamed(shapes, {f"h.{i}.ln_{n}": f"blocks.{i}.norm{n}" for n in (1, 2)})
        linears = {"attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
        for theirs, ours in linears.items():
            sources |= _transposed(shapes, f"h.{i}.{theirs}", [f"blocks.{i}.{ours}"])
        sources |= _transposed(shapes, f"h.{i}.attn.c_attn", [f"blocks.{i}.attn.{part}" for part in "qkv"])
    unused = r".*\.attn\.(masked_)?bias" + (r"|lm_head\.weight" if config.tied else "")
    return Layout(model, "transformer.", sources, re.compile(unused))


def vit_layout(fields: Fields) -> Layout:
    """ViTForImageClassification, for the image size of the checkpoint."""
    fields.only("hidden_act", "gelu")
    fields.only("qkv_bias", True)
    fields.only("num_channels", 3)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    patch = fields.integer("patch_size")
    _divided(fields, "hidden_size", heads)
    config = VitConfig(
        layers=fields.integer("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        patch=patch,
        tokens=_divided(fields, "image_size", patch) ** 2,
        classes=len(fields.inner("id2label").values) or 2,  # a checkpoint of two classes has no id2label
        mlp_ratio=_divided(fields, "intermediate_size", hidden),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
    )
    with torch.device("meta"):
        model = VisionTransformer(config)
    shapes = _shapes(model)
    kernel = Source((hidden, 3, patch, patch), lambda t: {"patch_embed.weight": t.flatten(1)})
    sources = {
        "embeddings.cls_token": _copied(shapes, "class_token"),
        "embeddings.position_embeddings": _copied(shapes, "position"),
        "embeddings.patch_embeddings.projection.weight": kernel,
        "embeddings.patch_embeddings.projection.bias": _copied(shapes, "patch_embed.bias"),
    }
    sources |= _renamed(shapes, {"layernorm": "norm", "classifier": "head"})
    parts = {
        "layernorm_before": "norm1",
        "attention.attention.query": "attn.q",
        "attention.attention.key": "attn.k",
        "attention.attention.value": "attn.v",
        "attention.output.dense": "attn.proj",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    for i in range(config.layers):
        names = {f"encoder.layer.{i}.{theirs}": f"blocks.{i}.{ours}" for theirs, ours in parts.items()}
        sources |= _renamed(shapes, names)
    return Layout(model, "vit.", sources, re.compile(r"pooler\..*"))


LAYOUTS = {"llama": llama_layout, "gpt2": gpt2_layout, "vit": vit_layout}


def _divided(fields: Fields, name: str, by: int) -> int:
    value = fields.integer(name)
    if value % by:
        raise fields.error(name, f"multiples of {by}")
    return value // by


def _rotary(fields: Fields, head_width: int) -> Rotary:
    """The rotary embedding: ``rope_parameters`` of transformers 5, or ``rope_theta`` and ``rope_scaling`` before."""
    rope = fields.inner("rope_parameters" if "rope_parameters" in fields.values else "rope_scaling")
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000))
    for place in (fields, rope):
        place.only("partial_rotary_factor", 1, None)
    kind = "rope_type" if "rope_type" in rope.values or "type" not in rope.values else "type"
    rope.only(kind, "default", "llama3")
    if rope.values.get(kind) != "llama3":
        return Rotary(head_width, theta)
    scaling = RotaryScaling(
        factor=rope.number("factor"),
        low_factor=rope.number("low_freq_factor"),
        high_factor=rope.number("high_freq_factor"),
        original_positions=rope.integer("original_max_position_embeddings"),
    )
    if scaling.high_factor <= scaling.low_factor:
        raise rope.error("high_freq_factor", f"numbers above low_freq_factor, {scaling.low_factor:g}")
    return Rotary(head_width, theta, scaling)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _copied(shapes: dict[str, tuple[int, ...]], ours: str) -> Source:
    return Source(shapes[ours], lambda tensor: {ours: tensor})


def _renamed(shapes: dict[str, tuple[int, ...]], names: dict[str, str]) -> dict[str, Source]:
    """Weights, and biases where the model has them, that differ in their names only."""
    return {
        f"{theirs}.{kind}": _copied(shapes, f"{ours}.{kind}")
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
        if f"{ours}.{kind}" in shapes
    }


def _transposed(shapes: dict[str, tuple[int, ...]], theirs: str, ours: list[str]) -> dict[str, Source]:
    """A transposed linear layer that holds the linear layers ``ours`` side by side, all of one size."""
    outputs, inputs = shapes[f"{ours[0]}.weight"]

    def weights(tensor: Tensor) -> dict[str, Tensor]:
        parts = tensor.split(outputs, dim=1)
        return {f"{name}.weight": part.T.contiguous() for name, part in zip(ours, parts, strict=True)}

    def biases(tensor: Tensor) -> dict[str, Tensor]:
        parts = tensor.split(outputs)
        return {f"{name}.bias": part.clone() for name, part in zip(ours, parts, strict=True)}

    width = outputs * len(ours)
    return {f"{theirs}.weight": Source((inputs, width), weights), f"{theirs}.bias": Source((width,), biases)}
