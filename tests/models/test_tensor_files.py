"""Safetensors files: what is read, and the one line for each that cannot be used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from testbed.models.tensor_files import UnusableFile, read_tensors
from tests.test_git_lfs import POINTER


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything, so it becomes nobody for the block."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def reason(path: Path) -> str:
    with pytest.raises(UnusableFile) as caught:
        read_tensors(path)
    assert str(caught.value) == f"{path.name} {caught.value.reason}" and caught.value.path == path
    return caught.value.reason


def test_tensors_and_metadata_are_read(tmp_path: Path) -> None:
    saved = {"a": torch.arange(3), "b": torch.full((2, 2), 3e38)}  # the sum of b overflows, its numbers do not
    save_file(saved, tmp_path / "m", {"made": "here"})
    tensors, metadata = read_tensors(tmp_path / "m")
    assert metadata == {"made": "here"} and tensors.keys() == saved.keys()
    assert all(torch.equal(tensors[name], saved[name]) for name in saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("values", [[float("nan"), 0, 0], [float("inf"), float("-inf"), 0], [1, 2, float("inf")]])
def test_numbers_that_are_not_finite_are_counted(tmp_path: Path, values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    save_file({"fine": torch.ones(2), "a.weight": tensor}, tmp_path / "m")
    count = sum(not torch.tensor(float(value)).isfinite() for value in values)
    assert reason(tmp_path / "m") == f"has NaN or infinity in {count} of the 3 numbers of a.weight"


def test_faults_of_the_file_system_are_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m"
        save_file({"a": torch.ones(2)}, path)
        Path(folder).chmod(0o755)
        path.chmod(0)
        with unprivileged():
            assert reason(path) == "cannot be read: Permission denied"
        assert reason(Path(folder)) == "cannot be read: Is a directory"
        assert reason(Path(folder) / "none") == "cannot be read: No such file or directory"


def test_damaged_files_and_pointers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"")
    assert reason(path).startswith("is damaged or not a safetensors file: ")
    path.write_text(POINTER)
    assert reason(path) == "is a Git LFS pointer, not the file itself; run git lfs pull in its folder"
