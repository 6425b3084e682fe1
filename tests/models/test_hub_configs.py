"""config.json: those of public models pass, and whatever would change the arithmetic unnoticed is refused by name."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from testbed.errors import ConfigError
from testbed.models.gpt2 import Gpt2
from testbed.models.hub import hub_tokenizer, hub_without_weights, load_hub
from testbed.models.llama import Llama, Rotary, RotaryScaling
from testbed.models.vit import VisionTransformer
from tests.models.test_tensor_files import unprivileged
from tests.test_git_lfs import POINTER
from tests.tiny_llama import edit_config, edit_weights, save_tiny_llama

IDS = torch.arange(40)[None]
PULL = "is a Git LFS pointer, not the file itself; run git lfs pull in its folder"
SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_2_7B = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_3_2_1B = LLAMA_2_7B | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_scaling": SCALING,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
MISTRAL_7B_V0_3 = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0",
    "use_cache": True,
    "vocab_size": 32768,
}
GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
DISTILGPT2 = GPT2 | {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "n_layer": 6}
VIT_BASE = {
    "_name_or_path": "google/vit-base-patch16-224-in21k",
    "architectures": ["ViTForImageClassification"],
    "attention_probs_dropout_prob": 0.0,
    "encoder_stride": 16,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "id2label": {str(i): f"class {i}" for i in range(1000)},
    "image_size": 224,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "label2id": {f"class {i}": i for i in range(1000)},
    "layer_norm_eps": 1e-12,
    "model_type": "vit",
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "qkv_bias": True,
    "transformers_version": "4.13.0.dev0",
}
# What to_dict() of version 4 adds to any configuration.
VERSION_4 = {
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
    "torch_dtype": None, "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {},
    "chunk_size_feed_forward": 0, "is_encoder_decoder": False, "is_decoder": False,
    "cross_attention_hidden_size": None, "add_cross_attention": False, "tie_encoder_decoder": False,
    "max_length": 20, "min_length": 0, "do_sample": False, "early_stopping": False, "num_beams": 1,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0,
    "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None, "num_return_sequences": 1, "output_scores": False, "return_dict_in_generate": False,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "remove_invalid_values": False,
    "exponential_decay_length_penalty": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "finetuning_task": None, "tokenizer_class": None, "prefix": None, "pad_token_id": None, "sep_token_id": None,
    "decoder_start_token_id": None, "task_specific_params": None, "problem_type": None,
    "_attn_implementation_autoset": True,
}  # fmt: skip


def without_weights(folder: Path, config: Mapping[str, object]) -> torch.nn.Module:
    (folder / "config.json").write_text(json.dumps(config))
    return hub_without_weights(folder)


def refusal(folder: Path) -> str:
    """The message, without the key and the folder."""
    with pytest.raises(ConfigError) as caught:
        load_hub(folder)
    start = f"model.folder={folder}: "
    assert str(caught.value).startswith(start) and str(caught.value).isprintable()
    return str(caught.value).removeprefix(start)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_llama(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("config", "kind", "layers", "hidden"),
    [
        (LLAMA_2_7B, Llama, 32, 4096),
        (LLAMA_3_2_1B, Llama, 16, 2048),
        (SMOLLM2_135M, Llama, 30, 576),
        (MISTRAL_7B_V0_3, Llama, 32, 4096),
        (GPT2, Gpt2, 12, 768),
        (DISTILGPT2, Gpt2, 6, 768),
        (VIT_BASE, VisionTransformer, 12, 768),
    ],
)
def test_configurations_of_public_models_pass(tmp_path: Path, config, kind, layers, hidden) -> None:
    for extra in ({}, {name: value for name, value in VERSION_4.items() if name not in config}):
        model = without_weights(tmp_path, config | extra)
        assert isinstance(model, kind) and (model.config.layers, model.config.hidden) == (layers, hidden)


def test_what_public_models_ask_for_is_taken_over(tmp_path: Path) -> None:
    llama = without_weights(tmp_path, LLAMA_3_2_1B)
    assert isinstance(llama, Llama) and llama.config.tied
    assert llama.config.rotary == Rotary(64, 500000.0, RotaryScaling(32.0, 1.0, 4.0, 8192))
    mistral = without_weights(tmp_path, MISTRAL_7B_V0_3)
    assert isinstance(mistral, Llama) and mistral.config.rotary == Rotary(128, 1e6) and not mistral.config.tied
    vit = without_weights(tmp_path, VIT_BASE)
    assert isinstance(vit, VisionTransformer) and (vit.config.classes, vit.config.tokens) == (1000, 196)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_activation", "gelu"),
        ("embedding_multiplier", 12.0),
        ("attention_multiplier", 0.0078125),
        ("residual_multiplier", 0.22),
        ("logits_scaling", 8.0),
        ("attn_logit_softcapping", 50.0),
        ("quantization", {"bits": 4}),
        ("auto_map", {"AutoModelForCausalLM": "code.Model"}),
        ("use_qk_norm", False),
    ],
)
def test_keys_that_nobody_knows_are_refused(folder: Path, name: str, value: object) -> None:
    edit_config(folder, **{name: None})
    load_hub(folder)
    edit_config(folder, **{name: value})
    unknown = "which is not known for llama and may change its results; remove it if the model does not use it"
    assert refusal(folder) == f"config.json: {name} is {value}, {unknown}"


@pytest.mark.parametrize(
    ("config", "changes", "reason"),
    [
        (LLAMA_2_7B, {"rope_parameters": {"rope_type": "default", "factor": 8.0}}, "rope_parameters.factor is 8.0, "),
        (LLAMA_3_2_1B, {"rope_scaling": SCALING | {"mscale": 2}}, "rope_scaling.mscale is 2, which is not known for"),
        (LLAMA_2_7B, {"pretraining_tp": 2}, "pretraining_tp is 2; supported: 1"),
        (LLAMA_2_7B, {"is_causal": False}, "is_causal is False; supported: True"),
        (LLAMA_2_7B, {"use_sliding_window": True}, "use_sliding_window is True; supported: False"),
        (LLAMA_2_7B, {"quantization_config": {}}, "quantization_config is {}; supported: null"),
        (LLAMA_2_7B, {"is_encoder_decoder": True}, "is_encoder_decoder is True; supported: False"),
        (LLAMA_2_7B, {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types is ['full_attention', 'ch"),
        (LLAMA_2_7B, {"architectures": ["LlamaForSequenceClassification"]}, "architectures is ['LlamaForSequenceCla"),
        (GPT2, {"n_ctx": 512}, "n_positions is 1024 and n_ctx is 512; remove the one that the model does not use"),
        (GPT2, {"pruned_heads": {"0": [1]}}, "pruned_heads is {'0': [1]}; supported: null or {}"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention is True; supported: False"),
        (GPT2, {"hidden_size": 512}, "hidden_size is 512, which is not known for gpt2"),
        (GPT2, {"n_layer": 1001}, "n_layer is 1001; supported: a whole number from 1 to 1000"),
        (LLAMA_2_7B, {"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000; supported: a whole number from 1 t"),
        (LLAMA_2_7B, {"hidden_size": 10**7, "head_dim": 10**7, "num_attention_heads": 10**6}, "its sizes make a tens"),
        (
            VIT_BASE,
            {"image_size": 10**7, "patch_size": 1, "hidden_size": 12 * 10**5, "intermediate_size": 12 * 10**5},
            "its sizes make a tensor too large for any machine: Storage size calculation overflowed",
        ),
        (VIT_BASE, {"num_labels": 10}, "num_labels is 10; supported: 1000, the entries of id2label"),
        (VIT_BASE, {"layer_scale_init_value": 1e-5}, "layer_scale_init_value is 1e-05, which is not known for vit"),
    ],
)
def test_values_that_change_the_arithmetic_are_refused(tmp_path: Path, config, changes, reason) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"config.json: {reason}")):
        without_weights(tmp_path, config | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": None, "rope_scaling": SCALING},
        {"rope_parameters": {}, "rope_scaling": SCALING},
        {"rope_parameters": {"rope_theta": 500000}, "rope_scaling": SCALING},
        {"rope_parameters": SCALING | {"rope_theta": 500000.0}, "rope_scaling": None},
        {"rope_parameters": SCALING, "rope_scaling": SCALING | {"type": "llama3", "rope_type": None}},
    ],
)
def test_the_value_of_a_rotary_scaling_counts_wherever_it_stands(tmp_path: Path, changes) -> None:
    model = without_weights(tmp_path, LLAMA_3_2_1B | changes)
    assert isinstance(model, Llama)
    assert model.config.rotary == Rotary(64, 500000.0, RotaryScaling(32.0, 1.0, 4.0, 8192))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"rope_parameters": {"rope_type": "default"}},
            "rope_parameters.rope_type is default and rope_scaling.rope_type is llama3",
        ),
        ({"rope_scaling": SCALING | {"type": "linear"}}, "rope_scaling.rope_type is llama3 and rope_scaling.type is l"),
        ({"rope_parameters": SCALING | {"factor": 8.0}}, "rope_parameters.factor is 8.0 and rope_scaling.factor is 32"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 500000.0 and rope_parameters.rope_theta is 10000.0"),
        (
            {"original_max_position_embeddings": 4096},
            "rope_scaling.original_max_position_embeddings is 8192 and original_max_position_embeddings is 4096",
        ),
    ],
)
def test_contradictions_about_rotary_embeddings_are_refused(tmp_path: Path, changes, reason) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason) + ".*; remove the one that the model does not use"):
        without_weights(tmp_path, LLAMA_3_2_1B | changes)


def test_a_head_width_of_its_own_frees_the_hidden_width(tmp_path: Path) -> None:
    model = without_weights(tmp_path, MISTRAL_7B_V0_3 | {"hidden_size": 5000, "head_dim": 128})
    assert model.state_dict()["blocks.0.attn.q.weight"].shape == (4096, 5000)


def test_mistral_without_a_window_is_llama(folder: Path) -> None:
    expected = load_hub(folder)(IDS)
    edit_config(folder, model_type="mistral")
    supported = "supported: null; set it so for prompts that the window holds, because it does not change these"
    assert refusal(folder) == f"config.json: sliding_window is missing, which means 4096 for mistral; {supported}"
    edit_config(folder, sliding_window=4096)
    assert refusal(folder) == f"config.json: sliding_window is 4096; {supported}"
    edit_config(folder, sliding_window=None)
    assert torch.equal(load_hub(folder)(IDS), expected)


def test_qwen2_is_refused_with_the_reason(folder: Path) -> None:
    edit_config(folder, model_type="qwen2")
    why = "model_type is qwen2, whose queries, keys and values have biases; supported: llama, mistral, gpt2, vit"
    assert refusal(folder) == f"config.json: {why}"


def test_a_tied_head_may_stand_for_the_embedding_or_beside_it(folder: Path) -> None:
    expected = load_hub(folder)(IDS)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_weights(folder, lm_head__weight=embedding)
    assert torch.equal(load_hub(folder)(IDS), expected)
    edit_weights(folder, model__embed_tokens__weight=None)
    assert torch.equal(load_hub(folder)(IDS), expected)
    edit_weights(folder, model__embed_tokens__weight=embedding + 1)
    edit = "set it to false in config.json if the model has a head of its own"
    tied = "lm_head.weight and embed_tokens.weight differ, but tie_word_embeddings makes them one"
    assert refusal(folder) == f"the weights {tied}; {edit}"
    edit_weights(folder, lm_head__weight=embedding[:, :4])
    assert refusal(folder) == "model.safetensors: lm_head.weight is [256, 4]; config.json asks for [256, 24]"
    edit_weights(folder, lm_head__weight=None, model__embed_tokens__weight=None)
    assert refusal(folder) == "the weights lack embed_tokens.weight, which config.json asks for"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(folder: Path, dtype: torch.dtype) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weight = load_file(folder / "model.safetensors")[name].to(dtype)
    weight[3, 4:6] = 1e6 if dtype == torch.float16 else float("nan")  # 1e6 overflows
    edit_weights(folder, **{name.replace(".", "__"): weight})
    assert refusal(folder) == f"model.safetensors has NaN or infinity in 2 of the 960 numbers of {name}"


def test_json_that_readers_understand_differently_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    whole = path.read_text()
    path.write_text(whole.replace('"rope_theta": 1000.0', '"rope_theta": 1000.0, "rope_theta": 10000.0'))
    assert refusal(folder) == "config.json is not JSON: rope_theta stands twice"
    for constant in ("NaN", "Infinity", "-Infinity"):
        path.write_text(whole.replace('"rms_norm_eps": 1e-05', f'"rms_norm_eps": {constant}'))
        assert refusal(folder) == f"config.json is not JSON: {constant} is not a number of JSON"
    path.write_text(whole.replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e999'))
    assert refusal(folder) == "config.json: rms_norm_eps is inf; supported: a number above 0"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_pointers_of_git_lfs_are_named(folder: Path, name: str) -> None:
    if name == "model.safetensors.index.json":
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER)
    assert refusal(folder) == f"{name} {PULL}"


def test_a_tokenizer_that_is_a_pointer_or_cannot_be_read_is_named(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(POINTER)
    with pytest.raises(ConfigError, match=f"tokenizer.json {PULL}"):
        hub_tokenizer(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read: Is a directory$"):
        hub_tokenizer(folder)


def test_files_that_may_not_be_read_are_named() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:  # not in a folder of the tests, which others may not enter
        Path(parent).chmod(0o755)
        folder = save_tiny_llama(Path(parent) / "tiny")
        load_hub(folder)  # imports what reading needs, which this user may not be able to
        for path in (folder / "model.safetensors", folder / "config.json"):
            path.chmod(0)
            with unprivileged():
                assert refusal(folder) == f"{path.name} cannot be read: Permission denied"
        folder.chmod(0)
        with unprivileged():
            assert refusal(folder) == "config.json cannot be read: Permission denied"
        Path(parent).chmod(0)
        with unprivileged():
            assert refusal(folder) == "cannot be read: Permission denied"


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert refusal(folder).startswith("adapter_config.json names an adapter, which is not read; merge it into the wei")
