"""One tensor in a file of the cache, computed by the first run that needs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from testbed.errors import printable
from testbed.models.tensor_files import UnusableFile, read_tensors
from testbed.models.weights import save_tensors
from testbed.results.cache import making


def cached_tensor(path: Path, name: str, make: Callable[[], Tensor], metadata: dict[str, str] | None = None) -> Tensor:
    """The tensor ``name`` of a cached file. ``make`` computes it if there is no such file.

    A run that needs it at the same time waits for the first one and takes its file. A damaged file is replaced, with a
    warning. Raises EnvironmentFault if the file cannot be written.
    """
    if (found := _read(path, name)) is not None:
        return found
    with making(path):
        if (found := _read(path, name)) is None:
            found = make()
            save_tensors({name: found}, path, metadata)
    return found


def _read(path: Path, name: str) -> Tensor | None:
    """The tensor; None if there is no file, or none that can be used, with a warning."""
    try:
        return read_tensors(path)[0][name]
    except (UnusableFile, KeyError) as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            reason = error.reason if isinstance(error, UnusableFile) else f"is damaged: it lacks {error}"
            warnings.warn(printable(f"{path} {reason}; it is made again"), stacklevel=3)
        return None
