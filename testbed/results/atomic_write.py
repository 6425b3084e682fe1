"""Writing files: faults of the file system are one line, and a reader finds the old file or the new file."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed.errors import TestbedError, reason


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """TestbedError that names ``target`` if the block cannot write it (a full disk, no permission, no such folder)."""
    try:
        yield
    except OSError as error:
        raise TestbedError(f"{target} cannot be written: {reason(error)}") from error


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a path beside ``target`` to write to. The new file replaces ``target`` after it was synced to disk.

    After an error in the block the new file is removed and the old one stays. Processes and threads may write the same
    target at the same time. The last one wins. Raises TestbedError as ``writing`` does.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.part")
    with writing(target):
        try:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
