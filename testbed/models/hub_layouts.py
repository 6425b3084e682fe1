"""Names of sizes and tensors in Llama, GPT-2 and ViT checkpoints in hub format, and the options that are supported.

The names are those that the classes LlamaForCausalLM, GPT2LMHeadModel and ViTForImageClassification of the package
transformers save, up to version 5. MistralForCausalLM without a window computes the same as LlamaForCausalLM. An
unsupported option that would change the arithmetic raises FieldError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from testbed.models.gpt2 import Gpt2, Gpt2Config
from testbed.models.hub_fields import FieldError, Fields, agreed
from testbed.models.llama import Llama, LlamaConfig, Rotary, RotaryScaling
from testbed.models.shape import MOST_LAYERS
from testbed.models.vit import VisionTransformer, VitConfig

# The classes of the package transformers whose arithmetic each layout computes.
LLAMA_CLASSES = ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel", "MistralForCausalLM", "MistralModel")
GPT2_CLASSES = ("GPT2LMHeadModel", "GPT2Model")
VIT_CLASSES = ("ViTForImageClassification",)
WITHOUT_WINDOW = "null; set it so for prompts that the window holds, because it does not change these"


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
    tied: (the head, the embedding) in a model whose head is its embedding; a checkpoint may hold either or both.
    """

    model: nn.Module
    prefix: str
    sources: dict[str, Source]
    unused: re.Pattern[str]
    tied: tuple[str, str] | None = None


def llama_layout(fields: Fields) -> Layout:
    """LlamaForCausalLM."""
    _common(fields, LLAMA_CLASSES)
    fields.only("hidden_act", "silu")
    fields.only("pretraining_tp", 1)
    fields.only("is_causal", True)
    fields.each("layer_types", "full_attention", "attention")
    for name in ("attention_bias", "mlp_bias", "rope_interleaved", "use_sliding_window"):
        fields.only(name, False)
    if fields.has("sliding_window"):
        raise fields.error("sliding_window", WITHOUT_WINDOW)
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    key_value_heads = fields.integer("num_key_value_heads", heads)
    if heads % key_value_heads:
        raise fields.error("num_key_value_heads", f"divisors of the {heads} heads")
    head_width = fields.integer("head_dim") if fields.has("head_dim") else _divided(fields, "hidden_size", heads)
    if head_width % 2:
        raise FieldError(
            f"the width of a head is {head_width}; supported: even numbers, because rotary embeddings rotate pairs"
        )
    config = LlamaConfig(
        layers=fields.integer("num_hidden_layers", most=MOST_LAYERS),
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
    tied = ("lm_head.weight", "embed_tokens.weight") if config.tied else None
    return Layout(model, "model.", sources, re.compile(r".*\.rotary_emb\.inv_freq"), tied)


def mistral_layout(fields: Fields) -> Layout:
    """MistralForCausalLM, which has a window of 4096 tokens where its configuration names none."""
    if "sliding_window" not in fields.values:
        raise FieldError(f"sliding_window is missing, which means 4096 for mistral; supported: {WITHOUT_WINDOW}")
    return llama_layout(fields)


def gpt2_layout(fields: Fields) -> Layout:
    """GPT2LMHeadModel. Linear layers are stored as [inputs, outputs]; queries, keys and values are side by side."""
    _common(fields, GPT2_CLASSES)
    fields.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    hidden, heads = fields.integer("n_embd"), fields.integer("n_head")
    _divided(fields, "n_embd", heads)
    config = Gpt2Config(
        layers=fields.integer("n_layer", most=MOST_LAYERS),
        hidden=hidden,
        heads=heads,
        mlp_hidden=fields.integer("n_inner", 4 * hidden),
        vocabulary=fields.integer("vocab_size"),
        positions=fields.integer(agreed((fields, "n_positions"), (fields, "n_ctx"))[1]),
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
    tied = ("lm_head.weight", "wte.weight") if config.tied else None
    return Layout(model, "transformer.", sources, re.compile(r".*\.attn\.(masked_)?bias"), tied)


def vit_layout(fields: Fields) -> Layout:
    """ViTForImageClassification, for the image size of the checkpoint."""
    _common(fields, VIT_CLASSES)
    fields.only("hidden_act", "gelu")
    fields.only("qkv_bias", True)
    fields.only("num_channels", 3)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    patch, labels = fields.integer("patch_size"), fields.entries("id2label")
    _divided(fields, "hidden_size", heads)
    classes = fields.integer("num_labels", labels or 2)  # a checkpoint of two classes has no id2label
    if labels and classes != labels:
        raise fields.error("num_labels", f"{labels}, the entries of id2label")
    config = VitConfig(
        layers=fields.integer("num_hidden_layers", most=MOST_LAYERS),
        hidden=hidden,
        heads=heads,
        patch=patch,
        tokens=_divided(fields, "image_size", patch) ** 2,
        classes=classes,
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


LAYOUTS = {"llama": llama_layout, "mistral": mistral_layout, "gpt2": gpt2_layout, "vit": vit_layout}


def _common(fields: Fields, classes: tuple[str, ...]) -> None:
    """What every layout computes in one way only. classes: those that the checkpoint may have been saved from."""
    fields.each("architectures", *classes)
    fields.only("quantization_config", None)
    fields.only("pruned_heads", None, {})
    for name in ("is_encoder_decoder", "add_cross_attention"):
        fields.only(name, False)


def _divided(fields: Fields, name: str, by: int) -> int:
    value = fields.integer(name)
    if value % by:
        raise fields.error(name, f"multiples of {by}")
    return value // by


def _rotary(fields: Fields, head_width: int) -> Rotary:
    """The rotary embedding: ``rope_parameters`` of transformers 5, ``rope_theta`` and ``rope_scaling`` before.

    Where a value stands decides nothing. FieldError if it stands in two places and differs.
    """
    old, new = fields.inner("rope_scaling"), fields.inner("rope_parameters")
    for place in (fields, old, new):
        place.only("partial_rotary_factor", 1, None)
    place, name = agreed((fields, "rope_theta"), (old, "rope_theta"), (new, "rope_theta"))
    theta = place.number(name, 10_000)
    rope, kind = agreed((new, "rope_type"), (new, "type"), (old, "rope_type"), (old, "type"))
    rope.only(kind, "default", "llama3")
    if rope.values.get(kind) != "llama3":
        return Rotary(head_width, theta)
    other = old if rope is new else new
    for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        agreed((rope, key), (other, key))
    agreed((rope, "original_max_position_embeddings"), (fields, "original_max_position_embeddings"))
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
