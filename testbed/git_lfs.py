"""Pointers of Git LFS (Large File Storage): short texts in the place of large files.

A clone that was made without Git LFS holds them, and so does a download of a repository's archive. Every reader of a
user's files asks here before it calls a file damaged.
"""

from __future__ import annotations

from pathlib import Path

from testbed.user_files import open_file

# The first line of every pointer: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
FIRST_LINE = b"version https://git-lfs.github.com/spec/v1"
PULL = "is a Git LFS pointer, not the file itself; run git lfs pull in its folder"


def is_pointer(path: Path) -> bool:
    """Whether the file is a pointer. False for a file that cannot be read, so that its reader says why."""
    try:
        with open_file(path) as opened:
            return opened.read(len(FIRST_LINE)) == FIRST_LINE
    except OSError:
        return False
