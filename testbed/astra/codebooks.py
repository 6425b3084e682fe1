"""Files of codebooks: written, read, and kept in a cache under a hash of everything that the codebooks depend on."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.quantizer import Codebooks
from testbed.errors import EnvironmentFault
from testbed.models.shape import ModelShape
from testbed.models.weights import save_tensors


def cached_codebooks(
    recipe: Mapping[str, object],
    specs: Sequence[CodebookSpec],
    shape: ModelShape,
    cache_dir: Path,
    train: Callable[[list[CodebookSpec]], Mapping[CodebookSpec, Codebooks]],
) -> dict[CodebookSpec, Path]:
    """The file with the codebooks of each spec.

    recipe: JSON data on which the codebooks depend besides their spec. shape: of the model. train: makes the codebooks
    of the specs whose files ``cache_dir`` lacks; called once, or not at all. A damaged file is replaced, with a
    warning.
    """
    recipes = {spec: json.dumps({**recipe, **spec.recipe}, sort_keys=True) for spec in specs}
    names = {spec: hashlib.sha256(text.encode()).hexdigest()[:16] for spec, text in recipes.items()}
    paths = {spec: cache_dir / f"codebooks-{name}.safetensors" for spec, name in names.items()}
    missing = [spec for spec, path in paths.items() if not _usable(path, spec.codebook_shape(shape))]
    if missing:
        trained = train(missing)
        for spec in missing:
            save_codebooks(trained[spec], paths[spec], recipes[spec])
    return paths


def save_codebooks(codebooks: Codebooks, path: Path, recipe: str = "") -> None:
    """Write a file for ``load_codebooks``. recipe: what the codebooks depend on, as JSON; kept in the file."""
    tensors = {"codebooks": codebooks.codebooks_LIKd, "pre_rotation": codebooks.rotation_LDD}
    save_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, {"recipe": recipe})


def load_codebooks(path: Path) -> Codebooks:
    """The codebooks of a file. They are mapped, not copied, so that processes share them.

    Raises EnvironmentFault, which names the file, where it is missing, damaged or holds something else.
    """
    try:
        tensors = load_file(path)
        codebooks_LIKd = tensors["codebooks"]
    except (OSError, SafetensorError, KeyError) as error:
        raise EnvironmentFault(f"{path} is damaged or no file of codebooks ({error})") from error
    if codebooks_LIKd.dim() != 4 or codebooks_LIKd.dtype != torch.float32:
        found = f"{codebooks_LIKd.dtype} {list(codebooks_LIKd.shape)}"
        raise EnvironmentFault(f"{path} is damaged or no file of codebooks (they are {found})")
    return Codebooks(codebooks_LIKd, tensors.get("pre_rotation"))


def fingerprint(model: nn.Module) -> str:
    """A hash of the first 64 numbers of every tensor, so that fine-tuned weights get their own codebooks."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.flatten()[:64].numpy().tobytes())
    return digest.hexdigest()


def _usable(path: Path, shape: tuple[int, int, int, int]) -> bool:
    """Whether the file exists, is whole, and holds codebooks of this shape. Warns of a damaged file."""
    if not path.exists():
        return False
    try:
        if load_codebooks(path).codebooks_LIKd.shape == shape:
            return True
        reason = f"{path} is damaged (codebooks of another shape)"
    except EnvironmentFault as error:
        reason = str(error)
    warnings.warn(f"{reason}; training its codebooks again", stacklevel=4)
    return False
