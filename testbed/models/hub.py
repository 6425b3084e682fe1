"""Checkpoints in the format of model hubs: a folder with config.json and safetensors weights, in one file or shards.

Nothing is downloaded. Nothing is unpickled, because reading a pickle can run any code. Everything is checked before the
first tensor is read. Whatever cannot be used raises ConfigError (key ``model.folder``), which names the file.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from testbed.errors import ConfigError
from testbed.models.gpt2 import Gpt2
from testbed.models.hub_layouts import LAYOUTS, FieldError, Fields, Layout, Source
from testbed.models.llama import Llama
from testbed.models.vit import VisionTransformer

CONFIG, WEIGHTS, INDEX, TOKENIZER = "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
FLOATS = ("F32", "F16", "BF16")


def load_hub(folder: Path) -> Llama | Gpt2 | VisionTransformer:
    """The model of a hub folder in eval mode, fp32, without gradients; a ViT for the image size of the checkpoint.

    Raises ConfigError (key ``model.folder``) for an unusable folder: one line with the file and what was expected.
    """
    layout = _layout(folder)
    found = _find(folder, layout)
    state: dict[str, Tensor] = {}
    for path in sorted({path for path, _ in found.values()}):
        try:
            with safe_open(path, "pt") as opened:
                for key, (holder, name) in found.items():
                    if holder == path:
                        state |= layout.sources[key].fill(opened.get_tensor(name).to(torch.float32))
        except (SafetensorError, OSError) as error:
            raise _unreadable(folder, path, error) from error
    model = layout.model
    model.load_state_dict(state, strict=True, assign=True)
    model.eval().requires_grad_(False)
    assert isinstance(model, Llama | Gpt2 | VisionTransformer)
    return model


def hub_without_weights(folder: Path) -> nn.Module:
    """The model of ``load_hub`` on the meta device, from config.json alone. Raises ConfigError as ``load_hub`` does."""
    return _layout(folder).model


def hub_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a hub folder. Raises ConfigError (key ``model.folder``) if it is missing or damaged."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise ConfigError("model.folder", folder, f"{TOKENIZER} is missing; save the model's fast tokenizer there")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises no narrower class
        raise ConfigError("model.folder", folder, f"{TOKENIZER} is not a tokenizer: {_line(error)}") from error
    # Run-time state that a file may have saved: it would cut or fill every text without a word.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _layout(folder: Path) -> Layout:
    """The architecture that config.json describes."""
    if not folder.is_dir():
        raise ConfigError("model.folder", folder, f"no such folder; expected one with {CONFIG} and {WEIGHTS}")
    values = _json_object(folder, CONFIG)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        allowed = ", ".join(LAYOUTS)
        raise ConfigError("model.folder", folder, f"{CONFIG}: model_type is {kind or 'missing'}; supported: {allowed}")
    fields = Fields(values)
    try:
        fields.only("quantization_config", None)
        return LAYOUTS[kind](fields)
    except FieldError as error:
        raise ConfigError("model.folder", folder, f"{CONFIG}: {error}") from error


def _find(folder: Path, layout: Layout) -> dict[str, tuple[Path, str]]:
    """The file and the name in it of each tensor of ``layout.sources``. Names, shapes and dtypes are checked."""
    found: dict[str, tuple[Path, str]] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dictionary
                    key = name.removeprefix(layout.prefix)
                    if layout.unused.fullmatch(key):
                        continue
                    if key in found:
                        raise ConfigError(
                            "model.folder", folder, f"{found[key][0].name} and {path.name} both hold {key}"
                        )
                    part = opened.get_slice(name)
                    reason = _mismatch(name, part.get_shape(), part.get_dtype(), layout.sources.get(key))
                    if reason:
                        raise ConfigError("model.folder", folder, f"{path.name}: {reason}")
                    found[key] = path, name
        except (SafetensorError, OSError) as error:
            raise _unreadable(folder, path, error) from error
    missing = sorted(set(layout.sources) - set(found))
    if missing:
        raise ConfigError("model.folder", folder, f"the weights lack {_some(missing)}, which {CONFIG} asks for")
    return found


def _mismatch(name: str, shape: list[int], dtype: str, source: Source | None) -> str:
    """Why a tensor of a file cannot be used; empty if it can."""
    if source is None:
        return f"{name} is not a tensor of the model that {CONFIG} describes"
    if tuple(shape) != source.shape:
        return f"{name} is {shape}; {CONFIG} asks for {list(source.shape)}"
    return "" if dtype in FLOATS else f"{name} is {dtype}; supported: {', '.join(FLOATS)}"


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards of its index."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        unsafe = "is never read, because a pickle can run any code: save it as safetensors"
        hint = f"; {pickled[0]} {unsafe}" if pickled else ""
        raise ConfigError("model.folder", folder, f"neither {WEIGHTS} nor {INDEX} is there{hint}")
    shards = _json_object(folder, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ConfigError("model.folder", folder, f"{INDEX} has no weight_map from tensors to files")
    files = [folder / name for name in sorted(set(shards.values()))]
    for path in files:
        if path.parent != folder or not path.is_file():
            reason = f"{path.name} is missing; {INDEX} names it among {len(files)} shards"
            raise ConfigError("model.folder", folder, reason)
    return files


def _json_object(folder: Path, name: str) -> dict[str, object]:
    try:
        values = json.loads((folder / name).read_bytes())
    except FileNotFoundError as error:
        raise ConfigError("model.folder", folder, f"{name} is missing; expected a folder in hub format") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("model.folder", folder, f"{name} is not JSON: {_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError("model.folder", folder, f"{name} is not a JSON object")
    return values


def _unreadable(folder: Path, path: Path, error: Exception) -> ConfigError:
    return ConfigError("model.folder", folder, f"{path.name} is damaged or not a safetensors file: {_line(error)}")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _line(error: Exception) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= 160 else f"{line[:160]}..."
