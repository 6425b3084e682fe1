"""Files of codebooks: written, read, and kept in a cache under a hash of everything that the codebooks depend on."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.quantizer import Codebooks
from testbed.errors import EnvironmentFault, printable
from testbed.models.shape import ModelShape
from testbed.models.tensor_files import UnusableFile, read_tensors
from testbed.models.weights import save_tensors
from testbed.results.cache import making


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
    warning. A run that needs the same file at the same time waits for it.
    """
    recipes = {spec: json.dumps({**recipe, **spec.recipe}, sort_keys=True) for spec in specs}
    names = {spec: hashlib.sha256(text.encode()).hexdigest()[:16] for spec, text in recipes.items()}
    paths = {spec: cache_dir / f"codebooks-{name}.safetensors" for spec, name in names.items()}

    def missing() -> list[CodebookSpec]:
        return [spec for spec, path in paths.items() if not _usable(path, spec, shape)]

    if wanted := missing():
        with ExitStack() as locks:
            for path in sorted(paths[spec] for spec in wanted):  # in one order, so that no two runs wait for each other
                locks.enter_context(making(path))
            if still := missing():
                trained = train(still)
                for spec in still:
                    save_codebooks(trained[spec], paths[spec], recipes[spec])
    return paths


def save_codebooks(codebooks: Codebooks, path: Path, recipe: str = "") -> None:
    """Write a file for ``load_codebooks``. recipe: what the codebooks depend on, as JSON; kept in the file."""
    tensors = {"codebooks": codebooks.codebooks_LIKd, "pre_rotation": codebooks.rotation_LDD}
    save_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, {"recipe": recipe})


def load_codebooks(path: Path) -> Codebooks:
    """The codebooks of a file. They are mapped, not copied, so that processes share them.

    Raises EnvironmentFault, which names the file, where it is missing, damaged, holds something else, or numbers that
    are not finite.
    """
    try:
        tensors, _ = read_tensors(path)
        codebooks_LIKd, rotation_LDD = tensors["codebooks"], tensors.get("pre_rotation")
    except UnusableFile as error:
        raise EnvironmentFault(f"{path} {error.reason}") from error
    except KeyError as error:
        raise EnvironmentFault(f"{path} is damaged or no file of codebooks (it has no tensor {error})") from error
    if codebooks_LIKd.dim() != 4 or not codebooks_LIKd.numel() or codebooks_LIKd.dtype != torch.float32:
        found = f"{codebooks_LIKd.dtype} {list(codebooks_LIKd.shape)}"
        raise EnvironmentFault(f"{path} is damaged or no file of codebooks (they are {found})")
    return Codebooks(codebooks_LIKd, rotation_LDD)


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights, with their names and shapes: 0.3 s for the 135 M numbers of SmolLM2."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _usable(path: Path, spec: CodebookSpec, shape: ModelShape) -> bool:
    """Whether the file exists, is whole, and holds codebooks and rotations of these shapes. Warns of a damaged file."""
    if not path.exists():
        return False
    width = spec.width(shape)
    rotations = None if spec.pre_rotation == "none" else (shape.layers, width, width)
    try:
        codebooks_LIKd, rotation_LDD = load_codebooks(path)
        found = codebooks_LIKd.shape, None if rotation_LDD is None else rotation_LDD.shape
        if found == (spec.codebook_shape(shape), rotations):
            return True
        reason = f"{path} is damaged (codebooks or rotations of another shape)"
    except EnvironmentFault as error:
        reason = str(error)
    warnings.warn(printable(f"{reason}; training its codebooks again"), stacklevel=4)
    return False
