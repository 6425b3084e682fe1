"""Checkpoints in the format of model hubs: a folder with config.json and safetensors weights, in one file or shards.

Nothing is downloaded. Nothing is unpickled, because reading a pickle can run any code. Names, shapes and types are
checked before the first tensor is read. Whatever cannot be used raises ConfigError (key ``model.folder``), which names
the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from testbed.errors import ConfigError
from testbed.models.gpt2 import Gpt2
from testbed.models.hub_fields import HARMLESS, FieldError, Fields
from testbed.models.hub_layouts import LAYOUTS, Layout, Source
from testbed.models.llama import Llama
from testbed.models.tensor_files import UnusableFile, check_finite, open_tensors, unusable
from testbed.models.vit import VisionTransformer
from testbed.user_files import read_file

CONFIG, WEIGHTS, INDEX, TOKENIZER = "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
ADAPTER = "adapter_config.json"
FLOATS = ("F32", "F16", "BF16")
WHY_NOT = {"qwen2": ", whose queries, keys and values have biases"}  # what a reader would try next


class FolderError(ValueError):
    """Why a folder cannot be used, in one line."""


def load_hub(folder: Path) -> Llama | Gpt2 | VisionTransformer:
    """The model of a hub folder in eval mode, fp32, without gradients; a ViT for the image size of the checkpoint.

    Raises ConfigError (key ``model.folder``) for an unusable folder: one line with the file and what was expected.
    """
    with _refusing(folder):
        layout = _layout(folder)
        read = _read(_find(folder, layout))
        if layout.tied:
            _use_tied_head(read, *layout.tied)
        state: dict[str, Tensor] = {}
        while read:  # taken out one by one, because GPT-2's are copied
            key, tensor = read.popitem()
            state |= layout.sources[key].fill(tensor)
    model = layout.model
    model.load_state_dict(state, strict=True, assign=True)
    model.eval().requires_grad_(False)
    assert isinstance(model, Llama | Gpt2 | VisionTransformer)
    return model


def hub_without_weights(folder: Path) -> nn.Module:
    """The model of ``load_hub`` on the meta device, from config.json alone. Raises ConfigError as ``load_hub`` does."""
    with _refusing(folder):
        return _layout(folder).model


def hub_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a hub folder. Raises ConfigError (key ``model.folder``) if it is missing or damaged."""
    path = folder / TOKENIZER
    with _refusing(folder):
        try:
            tokenizer = Tokenizer.from_buffer(read_file(path))
        except FileNotFoundError:
            raise FolderError(f"{TOKENIZER} is missing; save the model's fast tokenizer there") from None
        except Exception as error:  # the package raises no narrower class
            raise unusable(path, "is not a tokenizer", error) from error
    # Run-time state that a file may have saved: it would cut or fill every text without a word.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def hub_files(folder: Path) -> list[Path]:
    """The files that ``load_hub`` and ``hub_tokenizer`` read. Those that are missing may be among them; see there."""
    try:
        weights = _weight_files(folder)
    except (FolderError, UnusableFile, OSError):  # the loader says so
        weights = []
    index = [] if weights == [folder / WEIGHTS] else [folder / INDEX]
    return [folder / CONFIG, folder / TOKENIZER, *index, *weights]


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn every reason why the folder cannot be used into a ConfigError of ``model.folder``."""
    try:
        yield
    except (FolderError, UnusableFile) as error:
        raise ConfigError("model.folder", folder, str(error)) from error
    except OSError as error:  # of a folder that may not be entered or listed
        raise ConfigError("model.folder", folder, f"cannot be read: {error.strerror}") from error


def _layout(folder: Path) -> Layout:
    """The architecture that config.json describes."""
    if not folder.is_dir():
        raise FolderError(f"no such folder; expected one with {CONFIG} and {WEIGHTS}")
    values = _json_object(folder, CONFIG)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        why_not = WHY_NOT.get(kind, "") if isinstance(kind, str) else ""
        allowed = ", ".join(LAYOUTS)
        raise FolderError(f"{CONFIG}: model_type is {kind or 'missing'}{why_not}; supported: {allowed}")
    fields = Fields(values)
    try:
        layout = LAYOUTS[kind](fields)
        fields.refuse_unknown(HARMLESS[kind], kind)
    except FieldError as error:
        raise FolderError(f"{CONFIG}: {error}") from error
    except RuntimeError as error:  # of torch, whose tensors have less than 2^63 bytes
        raise FolderError(f"{CONFIG}: its sizes make a tensor too large for any machine: {error}") from error
    return layout


def _find(folder: Path, layout: Layout) -> dict[str, tuple[Path, str]]:
    """The file and the name in it of each tensor of ``layout.sources``. Names, shapes and dtypes are checked.

    Of a tied head and its embedding, one or both.
    """
    head, embedding = layout.tied or ("", "")
    sources = layout.sources | ({head: layout.sources[embedding]} if layout.tied else {})
    found: dict[str, tuple[Path, str]] = {}
    for path in _weight_files(folder):
        with open_tensors(path) as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                key = name.removeprefix(layout.prefix)
                if layout.unused.fullmatch(key):
                    continue
                if key in found:
                    raise FolderError(f"{found[key][0].name} and {path.name} both hold {key}")
                part = opened.get_slice(name)
                reason = _mismatch(name, part.get_shape(), part.get_dtype(), sources.get(key))
                if reason:
                    raise FolderError(f"{path.name}: {reason}")
                found[key] = path, name
    present = set(found) | ({embedding} if head in found else set())
    missing = sorted(set(layout.sources) - present)
    if missing:
        raise FolderError(f"the weights lack {_some(missing)}, which {CONFIG} asks for")
    return found


def _read(found: dict[str, tuple[Path, str]]) -> dict[str, Tensor]:
    """The tensors, fp32, whose numbers are all finite."""
    read: dict[str, Tensor] = {}
    for path in sorted({path for path, _ in found.values()}):
        with open_tensors(path) as opened:
            for key, (holder, name) in found.items():
                if holder == path:
                    read[key] = opened.get_tensor(name).to(torch.float32)
                    check_finite(path, name, read[key])
    return read


def _use_tied_head(read: dict[str, Tensor], head: str, embedding: str) -> None:
    """Leave the embedding alone in ``read``, where a checkpoint holds the tied head instead of it or beside it."""
    if head not in read:
        return
    stored = read.pop(head)
    if not torch.equal(read.setdefault(embedding, stored), stored):
        edit = f"set it to false in {CONFIG} if the model has a head of its own"
        raise FolderError(f"the weights {head} and {embedding} differ, but tie_word_embeddings makes them one; {edit}")


def _mismatch(name: str, shape: list[int], dtype: str, source: Source | None) -> str:
    """Why a tensor of a file cannot be used; empty if it can."""
    if source is None:
        return f"{name} is not a tensor of the model that {CONFIG} describes"
    if tuple(shape) != source.shape:
        return f"{name} is {shape}; {CONFIG} asks for {list(source.shape)}"
    return "" if dtype in FLOATS else f"{name} is {dtype}; supported: {', '.join(FLOATS)}"


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards of its index."""
    if (folder / ADAPTER).exists():
        raise FolderError(f"{ADAPTER} names an adapter, which is not read; merge it into the weights, or move it away")
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        unsafe = "is never read, because a pickle can run any code: save it as safetensors"
        hint = f"; {pickled[0]} {unsafe}" if pickled else ""
        raise FolderError(f"neither {WEIGHTS} nor {INDEX} is there{hint}")
    shards = _json_object(folder, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise FolderError(f"{INDEX} has no weight_map from tensors to files")
    files = [folder / name for name in sorted(set(shards.values()))]
    for path in files:
        if path.parent != folder or not path.is_file():
            raise FolderError(f"{path.name} is missing; {INDEX} names it among {len(files)} shards")
    return files


def _json_object(folder: Path, name: str) -> dict[str, object]:
    """The object of a JSON file. Keys that stand twice, and NaN and Infinity, which JSON lacks, are refused."""
    path = folder / name
    try:
        values = json.loads(read_file(path), object_pairs_hook=_distinct, parse_constant=_no_number)
    except FileNotFoundError as error:
        raise FolderError(f"{name} is missing; expected a folder in hub format") from error
    except (OSError, ValueError, RecursionError) as error:
        raise unusable(path, "is not JSON", error) from error
    if not isinstance(values, dict):
        raise UnusableFile(path, "is not a JSON object")
    return values


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} stands twice")
    return values


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
