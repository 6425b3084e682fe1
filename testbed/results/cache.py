"""Files that later runs find again: the folder that holds them, and a lock, so that only one run makes each file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from testbed.errors import EnvironmentFault, TestbedError
from testbed.progress import console
from testbed.results.atomic_write import writing

VARIABLE = "TESTBED_CACHE"  # of the environment: another folder for cached files
POLL_S = 0.2  # how often a waiting run tries the lock again


def cache_folder(default: Path) -> Path:
    """The absolute path of the folder that the environment variable TESTBED_CACHE names; ``default`` without it.

    Raises EnvironmentFault for a path that is not UTF-8, because safetensors refuses to write there.
    """
    folder = Path(os.path.expanduser(os.environ.get(VARIABLE) or default)).absolute()
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        named = f"the environment variable {VARIABLE} must name a folder whose path is UTF-8"
        raise EnvironmentFault(f"{folder}: the folder for cached files is not UTF-8; {named}") from None
    return folder


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Hold the lock of the cached file or folder ``path`` during the block, which makes it. Its folder is made.

    A run that has to wait says so in one line. It finds what the other run made, so the block must look first. The
    kernel releases the lock of a process that ends, however it ends.

    Raises EnvironmentFault, which names TESTBED_CACHE, if the lock or what the block makes cannot be written.
    """
    # No lock by existence where the kernel has none: it would outlive a process that is killed.
    lock = FileLock(path.with_name(f".{path.name}.lock"), fallback_to_soft=False)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _acquired(lock, path):
                yield
    except TestbedError as error:
        if type(error) is TestbedError and isinstance(error.__cause__, OSError):  # as ``writing`` raises it
            elsewhere = f"the environment variable {VARIABLE} names another folder for cached files"
            raise EnvironmentFault(f"{error}; {elsewhere}") from error
        raise


def _acquired(lock: FileLock, path: Path) -> AbstractContextManager[object]:
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        console().print(f"waiting for another run, which is making {path}", soft_wrap=True)
        return lock.acquire(poll_interval=POLL_S)
