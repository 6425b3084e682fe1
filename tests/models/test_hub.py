"""Checkpoints of the package transformers give the same logits here, and unusable ones raise a clear error."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from testbed.errors import ConfigError
from testbed.models.gpt2 import Gpt2
from testbed.models.hub import hub_tokenizer, load_hub
from testbed.models.llama import Llama
from testbed.models.vit import VisionTransformer

transformers = pytest.importorskip("transformers", reason="transformers is missing: pip install -e '.[dev]'")

IDS = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(0))
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def save(model, folder: Path, **options) -> Path:
    """Save the model with random numbers in all tensors, norms and biases too, so that a mix-up changes the logits."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.2 + (1.0 if "norm" in name else 0.0))
    model.save_pretrained(folder, safe_serialization=True, **options)
    return folder


def llama(**changes):
    sizes = dict(vocab_size=96, hidden_size=64, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()


def gpt2(**changes):
    sizes = dict(vocab_size=96, n_embd=48, n_layer=3, n_head=4, n_positions=48, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | changes)).eval()


def vit(**changes):
    sizes = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, patch_size=4)
    config = transformers.ViTConfig(**sizes | dict(image_size=16, num_labels=5) | changes)
    return transformers.ViTForImageClassification(config).eval()


@torch.no_grad()
def assert_same_logits(reference, folder: Path, kind: type, inputs: torch.Tensor) -> None:
    model = load_hub(folder)
    assert isinstance(model, kind) and not model.training
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in model.parameters())
    expected = reference(inputs).logits
    assert expected.std() > 0.3  # otherwise the comparison would mean nothing
    torch.testing.assert_close(model(inputs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"num_key_value_heads": 4, "rms_norm_eps": 0.1},
        {"num_key_value_heads": 2, "head_dim": 24},
        {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        {"num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_llama_logits(tmp_path: Path, changes):
    model = llama(**changes)
    assert_same_logits(model, save(model, tmp_path), Llama, IDS)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"n_inner": 100}], ids=str)
def test_gpt2_logits(tmp_path: Path, changes):
    model = gpt2(**changes)
    assert_same_logits(model, save(model, tmp_path), Gpt2, IDS)


@pytest.mark.parametrize("changes", [{}, {"num_labels": 2}, {"layer_norm_eps": 0.1}], ids=str)
def test_vit_logits(tmp_path: Path, changes):
    model, pixels = vit(**changes), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert_same_logits(model, save(model, tmp_path), VisionTransformer, pixels)


@pytest.mark.parametrize(("build", "kind"), [(llama, Llama), (gpt2, Gpt2)])
def test_shards_are_joined(tmp_path: Path, build, kind):
    model = build()
    save(model, tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_logits(model, tmp_path, kind, IDS)


def test_half_precision_is_read_as_float32(tmp_path: Path):
    model = llama()
    save(model, tmp_path)
    state = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    assert_same_logits(model, tmp_path, Llama, IDS)


def test_configurations_of_older_versions(tmp_path: Path):
    model = llama(rope_parameters=LLAMA3_ROPE)
    save(model, tmp_path)
    change(tmp_path, rope_theta=500.0, rope_scaling=model.config.rope_parameters | {"type": "llama3"})
    drop(tmp_path, "rope_parameters", "head_dim")
    assert_same_logits(model, tmp_path, Llama, IDS)


def test_names_without_prefix_and_stored_buffers(tmp_path: Path):
    model = gpt2()  # as the first GPT-2 checkpoints were saved
    save(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    save_file(state | {"h.0.attn.bias": torch.ones(1, 1, 48, 48).tril()}, tmp_path / "model.safetensors")
    assert_same_logits(model, tmp_path, Gpt2, IDS)


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def change(folder: Path, **values) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(folder) | values))


def drop(folder: Path, *names: str) -> None:
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config_of(folder).items() if k not in names}))


def assert_unusable(folder: Path, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        load_hub(folder)
    assert caught.value.key == "model.folder" and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"model.folder={folder}: ")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "mamba"}, "config.json: model_type is mamba; supported: llama, mistral, gpt2, vit"),
        ({"model_type": None}, "config.json: model_type is missing; supported: llama, mistral, gpt2, vit"),
        ({"attention_bias": True}, "config.json: attention_bias is True; supported: False"),
        ({"mlp_bias": True}, "config.json: mlp_bias is True; supported: False"),
        ({"sliding_window": 128}, "config.json: sliding_window is 128; supported: null"),
        ({"hidden_act": "relu"}, "config.json: hidden_act is relu; supported: silu"),
        ({"quantization_config": {"bits": 4}}, "config.json: quantization_config is {'bits': 4}; supported: null"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "config.json: rope_parameters.rope_type is yarn; supported: default or llama3",
        ),
        (
            {"rope_parameters": LLAMA3_ROPE | {"factor": None}},
            "config.json: rope_parameters.factor is None; supported: a number above 0",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "config.json: rope_parameters.partial_rotary_factor is 0.5; supported: 1 or null",
        ),
        ({"rope_parameters": [1]}, "config.json: rope_parameters is [1]; supported: an object or null"),
        ({"num_key_value_heads": 3}, "config.json: num_key_value_heads is 3; supported: divisors of the 4 heads"),
        ({"hidden_size": "64"}, "config.json: hidden_size is 64; supported: a whole number from 1 to"),
        ({"num_hidden_layers": 0}, "config.json: num_hidden_layers is 0; supported: a whole number from 1 to"),
        ({"rms_norm_eps": "small"}, "config.json: rms_norm_eps is small; supported: a number above 0"),
        ({"head_dim": 15}, "config.json: the width of a head is 15; supported: even numbers"),
        ({"num_hidden_layers": 4}, "the weights lack layers.3.input_layernorm.weight and 8 more"),
        (
            {"num_hidden_layers": 2},
            "model.safetensors: model.layers.2.input_layernorm.weight is not a tensor",
        ),
        (
            {"intermediate_size": 81},
            "model.safetensors: model.layers.0.mlp.down_proj.weight is [64, 80]; config.json asks for [64, 81]",
        ),
    ],
)
def test_unsupported_configurations_raise(tmp_path: Path, changes, reason):
    save(llama(), tmp_path)
    change(tmp_path, **changes)
    assert_unusable(tmp_path, reason)


@pytest.mark.parametrize(
    ("build", "changes", "reason"),
    [
        (
            gpt2,
            {"activation_function": "gelu"},
            "activation_function is gelu; supported: gelu_new or",
        ),
        (gpt2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True; supported: False"),
        (gpt2, {"n_head": 5}, "n_embd is 48; supported: multiples of 5"),
        (vit, {"qkv_bias": False}, "qkv_bias is False; supported: True"),
        (vit, {"image_size": 18}, "image_size is 18; supported: multiples of 4"),
        (vit, {"intermediate_size": 100}, "intermediate_size is 100; supported: multiples of 48"),
    ],
)
def test_unsupported_options_of_gpt2_and_vit_raise(tmp_path: Path, build, changes, reason):
    save(build(), tmp_path)
    change(tmp_path, **changes)
    assert_unusable(tmp_path, f"config.json: {reason}")


def test_missing_files_raise(tmp_path: Path):
    assert_unusable(tmp_path / "none", "no such folder; expected one with config.json and model.safetensors")
    assert_unusable(tmp_path, "config.json is missing; expected a folder in hub format")
    save(llama(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert_unusable(tmp_path, "neither model.safetensors nor model.safetensors.index.json is there")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert_unusable(
        tmp_path, "pytorch_model.bin is never read, because a pickle can run any code: save it as safetensors"
    )


@pytest.mark.parametrize("text", ["", "{", "\u00e9", "[1]", "[" * 100_000])
def test_files_that_are_not_json_raise(tmp_path: Path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert_unusable(tmp_path, "config.json is not ")


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_truncated_weights_raise(tmp_path: Path, keep):
    path = save(llama(), tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert_unusable(tmp_path, "model.safetensors is damaged or not a safetensors file: ")


def test_missing_or_misplaced_shards_raise(tmp_path: Path):
    save(llama(), tmp_path, max_shard_size="40KB")
    index = tmp_path / "model.safetensors.index.json"
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    second.rename(tmp_path / "aside")
    assert_unusable(tmp_path, f"{second.name} is missing; model.safetensors.index.json names it among")
    (tmp_path / "aside").rename(second)
    whole = index.read_text()
    index.write_text(whole.replace(first.name, f"../{tmp_path.name}/{first.name}"))
    assert_unusable(tmp_path, f"{first.name} is missing")
    index.write_text("{}")
    assert_unusable(tmp_path, "model.safetensors.index.json has no weight_map from tensors to files")
    index.write_text(whole)
    second.write_bytes(first.read_bytes())
    assert_unusable(tmp_path, f"{first.name} and {second.name} both hold ")


def test_integer_weights_raise(tmp_path: Path):
    save(llama(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"model.norm.weight": torch.ones(64, dtype=torch.int8)}, tmp_path / "model.safetensors")
    assert_unusable(tmp_path, "model.safetensors: model.norm.weight is I8; supported: F32, F16, BF16")


def test_tokenizers_of_hub_folders(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"model.folder=.*tokenizer.json is missing"):
        hub_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"model.folder=.*tokenizer.json is not a tokenizer: ") as caught:
        hub_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    Tokenizer(models.WordLevel({"a": 3, "?": 0}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    assert hub_tokenizer(tmp_path).encode("a").ids == [3]


def test_a_tokenizers_saved_truncation_and_padding_are_off(tmp_path: Path):
    saved = Tokenizer(models.WordLevel({"a": 3, "?": 0}, unk_token="?"))
    saved.pre_tokenizer = pre_tokenizers.Whitespace()
    saved.enable_truncation(2)
    saved.enable_padding(length=5)
    saved.save(str(tmp_path / "tokenizer.json"))
    assert hub_tokenizer(tmp_path).encode("a a a").ids == [3, 3, 3]
