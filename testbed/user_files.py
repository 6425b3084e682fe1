"""Opening the files that a user names: a file, and not a pipe or a device, from which reading may never end."""

from __future__ import annotations

import errno
from io import BufferedReader
from pathlib import Path


def open_file(path: Path) -> BufferedReader:
    """The file, open for reading. OSError as of ``open``, and also for a pipe, a socket or a device."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return path.open("rb")


def read_file(path: Path) -> bytes:
    """The bytes of the file. OSError as of ``open_file``."""
    with open_file(path) as opened:
        return opened.read()
