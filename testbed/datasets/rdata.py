"""Character vectors from the data of an R package, read without R.

R keeps such data in a *lazy-load database* (R Internals, "Lazy loading"). The index is a gzipped serialized list with
offset and length of each variable in the store. The store has, for each variable, its size in 4 bytes and a zlib stream
of the serialized value. The package ``rdata`` reads R's serialization.
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

SIZE_BYTES = 4  # before each zlib stream


def character_vectors(index: Path, store: Path) -> dict[str, list[str]]:
    """Variable -> its strings. Raises EnvironmentFault if the files are damaged or of another kind."""
    try:
        variables = _value(gzip.decompress(index.read_bytes()))["variables"]
        content = store.read_bytes()
        return {
            str(name): [str(line) for line in _value(zlib.decompress(content[offset + SIZE_BYTES : offset + length]))]
            for name, (offset, length) in variables.items()
        }
    except Exception as error:  # rdata raises no class of its own for damaged files
        reason = " ".join(str(error).split())
        raise EnvironmentFault(f"{index} and {store.name} are not the data of an R package: {reason}") from error


def _value(serialized: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rdata warns that it guesses the file type
        return convert(parse_data(serialized))
