"""Pointers of Git LFS are told from the files that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.git_lfs import is_pointer

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(POINTER.encode(), True), (b"", False), (b"version 1", False), (b"\n" + POINTER.encode(), False)],
)
def test_the_first_line_makes_a_pointer(tmp_path: Path, content: bytes, expected: bool) -> None:
    (tmp_path / "file").write_bytes(content)
    assert is_pointer(tmp_path / "file") is expected


def test_what_cannot_be_read_is_no_pointer(tmp_path: Path) -> None:
    assert not is_pointer(tmp_path) and not is_pointer(tmp_path / "none")
