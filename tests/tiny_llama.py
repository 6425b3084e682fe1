"""A small random Llama in a hub folder, with a tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from testbed.models.llama import Llama, LlamaConfig, Rotary
from tests.datasets.test_token_windows import BYTES

LLAMA = LlamaConfig(2, 24, 4, 2, 8, 40, 256, 1e-5, Rotary(8, 1000.0), tied=True)
HUB_NAMES = {"attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj"}
HUB_NAMES |= {"attn.proj": "self_attn.o_proj", "norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
HUB_NAMES |= {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}


def hub_name(name: str) -> str:
    """Of a Llama's tensor in a hub folder."""
    if name.startswith("blocks."):
        _, layer, part = name.removesuffix(".weight").split(".", 2)
        return f"model.layers.{layer}.{HUB_NAMES[part]}.weight"
    return {"token_embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}[name]


def save_tiny_llama(folder: Path) -> Path:
    """Its attention is sharp: what a token loses on the way is then seen."""
    folder.mkdir()
    torch.manual_seed(0)
    model = Llama(LLAMA)
    scales = {"attn.q": 4.0, "attn.k": 4.0, "token_embed": 0.1}
    state = {}
    for name, tensor in model.state_dict().items():
        scale = next((scale for part, scale in scales.items() if part in name), 1.0)
        state[hub_name(name)] = scale * tensor.clone()
    save_file(state, folder / "model.safetensors")
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    sizes |= {"head_dim": 8, "intermediate_size": 40, "vocab_size": 256, "rms_norm_eps": 1e-5, "rope_theta": 1000.0}
    config = {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": True, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    BYTES.save(str(folder / "tokenizer.json"))
    return folder


def edit_config(folder: Path, **values: object) -> None:
    """Set keys of the folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder: Path, **values: torch.Tensor | None) -> None:
    """Set tensors of the folder's weights; None removes one. Dots of a name are written as ``__``."""
    path = folder / "model.safetensors"
    state = load_file(path) | {name.replace("__", "."): value for name, value in values.items()}
    save_file({name: value.clone() for name, value in state.items() if value is not None}, path)
