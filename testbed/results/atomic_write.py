"""Atomic replacement of files: a reader finds the old file or the new file, never a part of one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a path beside ``target`` to write to. The new file replaces ``target`` after it was synced to disk.

    After an error in the block the new file is removed and the old one stays. Processes and threads may write the same
    target at the same time. The last one wins.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
