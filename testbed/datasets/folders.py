"""A user's folder: which entries are data, and files whose content is known by a hash. Faults are one line."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from testbed.errors import EnvironmentFault, printable
from testbed.git_lfs import PULL, is_pointer
from testbed.user_files import open_file

SYSTEM_NAMES = frozenset({"__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini", "lost+found", "@eaDir"})


def is_data(path: Path) -> bool:
    """False for hidden names, as ``.ipynb_checkpoints``, and for names that operating systems write by themselves."""
    return not path.name.startswith(".") and path.name not in SYSTEM_NAMES


def contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """(files, folders) in a folder that are data, each by name; both are empty if there is no such folder.

    A link counts as what it leads to. Raises EnvironmentFault, which names the entry, for a folder that cannot be read,
    a link that leads nowhere, and what is neither a file nor a folder.
    """
    files, folders = [], []
    try:
        for path in sorted(filter(is_data, folder.iterdir())) if folder.is_dir() else ():
            if not path.is_file() and not path.is_dir():
                raise EnvironmentFault(f"{path}: neither a file nor a folder, or a link that leads nowhere; remove it")
            (files if path.is_file() else folders).append(path)
    except OSError as error:
        raise EnvironmentFault(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    return files, folders


def warn_of_unread(folder: Path, unread: Sequence[Path], expected: str) -> None:
    """Warn of entries that are no data of the kind that is read here. expected: what is read, for the message."""
    if unread:
        kinds = Counter(path.suffix.lower() or path.name for path in unread)
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        more = f" and {len(kinds) - 5} other kinds" if len(kinds) > 5 else ""
        message = f"{folder}: {len(unread)} entries are not read ({shown}{more}); expected {expected}"
        warnings.warn(printable(message), stacklevel=2)


def content_hash(path: Path) -> bytes:
    """SHA-256 of a file, 32 bytes. Raises EnvironmentFault if it cannot be read or is a pointer of Git LFS."""
    try:
        with open_file(path) as opened:
            found = hashlib.file_digest(opened, "sha256").digest()
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error.strerror}") from error
    if is_pointer(path):
        raise EnvironmentFault(f"{path} {PULL}")
    return found
