"""Character vectors of an R package's data, without R and without running anything.

R keeps such data in a *lazy-load database* (R Internals, "Lazy loading"): the index, a gzipped serialized list, gives
offset and length of each variable in the store, where it lies as its size in 4 bytes and a zlib stream of the
serialized value. The package ``rdata`` reads R's serialization.
"""

from __future__ import annotations

import gzip
import warnings
import zlib
from pathlib import Path
from typing import Any

from rdata.conversion import convert
from rdata.parser import parse_data

from testbed.errors import EnvironmentFault

SIZE_BYTES = 4  # in front of each zlib stream


def character_vectors(index: Path, store: Path) -> dict[str, list[str]]:
    """Name -> strings of each variable. Raises EnvironmentFault if the files are damaged or of another kind."""
    try:
        variables = _value(gzip.decompress(index.read_bytes()))["variables"]
        content = store.read_bytes()
        return {
            str(name): [str(line) for line in _value(zlib.decompress(content[offset + SIZE_BYTES : offset + length]))]
            for name, (offset, length) in variables.items()
        }
    except Exception as error:  # rdata has no class of its own for damaged files
        reason = " ".join(str(error).split())
        raise EnvironmentFault(f"{index} and {store.name} are not the data of an R package: {reason}") from error


def _value(serialized: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has to guess the kind of file
        return convert(parse_data(serialized))
