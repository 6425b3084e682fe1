"""Small model folders in hub format, and what may happen to one on its way to a user."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from testbed.models.hub_fields import HARMLESS, Fields
from testbed.models.hub_layouts import LAYOUTS
from tests.datasets.test_token_windows import BYTES
from tests.test_git_lfs import POINTER
from tests.tiny_llama import save_tiny_llama

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64, "vocab_size": 256}
GPT2 |= {"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "n_inner": None}
VIT = {"model_type": "vit", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 16}
VIT |= {"intermediate_size": 32, "patch_size": 4, "hidden_act": "gelu", "num_labels": 5}

LINKS = {"loop": "", "dangling": "/nowhere/at all", "empty": "/dev/null", "endless": "/dev/zero"}
FILES = ["config.json", "model.safetensors", "tokenizer.json"]
OTHERS = ["model.safetensors.index.json", "adapter_config.json", "pytorch_model.bin", "generation_config.json", "a.txt"]
NAMES = [
    "m",
    "é ü",
    "a=b",
    "a#b",
    "NA",
    "nan",
    "-x",
    "a,b",
    "[x]",
    "{a:b}",
    "a'b",
    'a"b',
    "日本語",
    "x" * 200,
    "a\\b",
    "$HOME",
]

SCALARS = st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=5)
SCALARS |= st.sampled_from(
    [10**6, 10**7, 10**7 + 1, 10**400, -(10**20), 1e308, "4", "silu", "default", "llama3", "NaN"]
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
RAW = st.sampled_from([b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe{}", b"[" * 100_000, b"\x00" * 64, POINTER.encode()])
RAW |= st.binary(max_size=40)
OPTIONS: dict[str, list[Any]] = {
    "rope_scaling": [{"rope_type": "llama3", "factor": 8.0}, {"type": "linear", "factor": 2.0}, {}, None],
    "rope_parameters": [{"rope_type": "default", "rope_theta": 1000.0}, {"rope_theta": -1}, {"rope_type": None}, []],
    "rope_theta": [1, 0, -5, 1e299, 1e-300, "1e4", True],
    "rms_norm_eps": [0, 1e-300, 1e299, -1e-5],
    "layer_norm_epsilon": [0, 1e299],
    "num_hidden_layers": [1, 3, 10**4, 10**6, 10**7, 2.0],
    "n_layer": [1, 3, 10**4, 10**6, 10**7, 2.0],
    "vocab_size": [255, 257, 10**7, 10**12],
    "hidden_size": [12, 24.0, 10**7],
    "head_dim": [8, 7, 10**7, None],
    "model_type": ["llama", "mistral", "gpt2", "vit", "qwen2", "", None, 5, ["llama"]],
    "architectures": [["LlamaForCausalLM"], ["QwenForCausalLM"], [None], [[]], "LlamaForCausalLM", {}],
    "id2label": [{"0": "a"}, {}, [], None, {"0": None}],
    "sliding_window": [None, 4096, 0],
    "n_positions": [63, 64, 10**7, None],
}


def save_random(folder: Path, values: dict[str, Any]) -> Path:
    """A folder whose tensors are random, with the names and shapes that its config.json asks for."""
    folder.mkdir()
    torch.manual_seed(0)
    layout = LAYOUTS[values["model_type"]](Fields(values))
    scale = {name: 1.0 if "ln_" in name or "norm" in name else 0.3 for name in layout.sources}
    prefix = {name: "" if name.startswith(("lm_head", "classifier")) else layout.prefix for name in layout.sources}
    state = {f"{prefix[n]}{n}": scale[n] * torch.randn(source.shape) for n, source in layout.sources.items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))
    BYTES.save(str(folder / "tokenizer.json"))
    return folder


def save_models(folder: Path) -> dict[str, Path]:
    """A whole folder of each kind."""
    return {
        "llama": save_tiny_llama(folder / "llama"),
        "gpt2": save_random(folder / "gpt2", GPT2),
        "vit": save_random(folder / "vit", VIT),
    }


Edit = Callable[[Path], None]


@st.composite
def config_edit(draw: st.DrawFn) -> Edit:
    """A key of config.json is removed, replaced, or stands twice."""
    keys = sorted({*OPTIONS, *GPT2, *VIT, "tie_word_embeddings", "num_key_value_heads", "intermediate_size", "n_inner"})
    key = draw(st.sampled_from(keys) | st.sampled_from(sorted(HARMLESS["llama"])) | st.text(max_size=6))
    how = draw(st.sampled_from(["remove", "twice", "option", "option", "option", "value", "value"]))
    value = draw(st.sampled_from(OPTIONS[key]) if how == "option" and key in OPTIONS else JSON)
    only_there = draw(st.booleans())

    def edit(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_bytes())
        name = key if not only_there or key in values else sorted(values)[len(key) % len(values)]
        if how == "remove":
            values.pop(name, None)
        else:
            values[name] = value
        text = json.dumps(values)
        path.write_text(text[:-1] + f", {json.dumps(name)}: 1}}" if how == "twice" else text)

    return edit


TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "shape": lambda tensor: tensor[..., :-1].contiguous(),
    "empty": lambda tensor: tensor[:0].contiguous(),
    "scalar": lambda tensor: torch.tensor(1.0),
    "nan": lambda tensor: tensor.index_fill(0, torch.tensor([0]), float("nan")),
    "inf": lambda tensor: tensor.index_fill(0, torch.tensor([0]), float("inf")),
    "huge": lambda tensor: tensor * 1e37,
    "zero": torch.zeros_like,
    "float16": lambda tensor: tensor.half(),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "float64": lambda tensor: tensor.double(),
    "int8": lambda tensor: tensor.to(torch.int8),
    "bool": lambda tensor: tensor.bool(),
}


@st.composite
def tensor_edit(draw: st.DrawFn) -> Edit:
    """A tensor is missing, extra, of another shape or type, or holds numbers that are none."""
    place, how = draw(st.integers(0, 50)), draw(st.sampled_from(["drop", "extra", "head", *TENSORS]))

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        state = load_file(path)
        name = sorted(state)[place % len(state)]
        tensor = state.pop(name) if how == "drop" else state[name]
        if how in ("extra", "head"):
            state[f"{name}.more" if how == "extra" else "lm_head.weight"] = tensor
        elif how in TENSORS:
            state[name] = TENSORS[how](tensor)
        save_file({n: t.clone() for n, t in state.items()}, path)

    return edit


@st.composite
def file_edit(draw: st.DrawFn) -> Edit:
    """A file is missing, garbage, a folder, a link that leads nowhere or to itself, a pipe, or cut off."""
    name = draw(st.sampled_from([*FILES, *FILES, *OTHERS]))
    how = draw(
        st.sampled_from(["remove", "raw", "json", "folder", "loop", "dangling", "pipe", "socket_link", "cut", "device"])
    )
    raw, value, share = draw(RAW), draw(JSON), draw(st.floats(0, 1))

    def edit(folder: Path) -> None:
        path = folder / name
        before = path.read_bytes() if path.is_file() else b"{}"
        path.unlink(missing_ok=True)
        if how == "folder":
            path.mkdir()
        elif how == "pipe":
            os.mkfifo(path)
        elif how in LINKS:
            path.symlink_to(LINKS[how] or path.name)
        elif how != "remove":
            path.write_bytes(
                {"raw": raw, "json": json.dumps(value).encode()}.get(how, before[: int(share * len(before))])
            )

    return edit


@st.composite
def tokenizer_edit(draw: st.DrawFn) -> Edit:
    """A part of tokenizer.json is removed or replaced."""
    steps, value, remove = draw(st.lists(st.integers(0, 300), min_size=1, max_size=4)), draw(JSON), draw(st.booleans())

    def edit(folder: Path) -> None:
        path = folder / "tokenizer.json"
        values = json.loads(path.read_bytes())
        part: Any = values
        for step in steps[:-1]:
            inner = [key for key in part if isinstance(part[key], dict) and part[key]]
            part = part[inner[step % len(inner)]] if inner else part
        key = sorted(part)[steps[-1] % len(part)]
        if remove:
            del part[key]
        else:
            part[key] = value
        path.write_text(json.dumps(values))

    return edit


EDITS = config_edit() | config_edit() | tensor_edit() | file_edit() | tokenizer_edit()


def edited(whole: Path, edits: list[Edit], folder: Path) -> Path:
    """A copy of a whole folder with these edits. One that no longer applies, as to a file that is gone, is left out."""
    shutil.copytree(whole, folder)
    for edit in edits:
        with contextlib.suppress(Exception):
            edit(folder)
    return folder
