"""Files of codebooks: what a file may hold, what is refused, and what the cache replaces."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.codebooks import cached_codebooks, load_codebooks, save_codebooks
from testbed.astra.quantizer import Codebooks
from testbed.errors import EnvironmentFault
from testbed.models.vit import VitConfig

SHAPE = VitConfig(layers=3, hidden=24, heads=3, patch=2, tokens=16, classes=4).shape
SPEC = CodebookSpec(groups=1, size=16)


def tensors(**named: Tensor) -> bytes:
    return save(named)


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda b: b[: len(b) // 2],
    lambda b: b"",
    lambda b: b"\xff" * len(b),
    lambda b: pickle.dumps({"codebooks": [1.0]}),
    lambda b: tensors(weights=torch.zeros(3, 1, 16, 24)),
    lambda b: tensors(codebooks=torch.zeros(3, 1, 16)),
    lambda b: tensors(codebooks=torch.zeros(3, 1, 16, 24, dtype=torch.int32)),
]


@pytest.mark.parametrize("rotation", [None, torch.eye(24).repeat(3, 1, 1)])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, rotation: Tensor | None) -> None:
    saved = Codebooks(torch.randn(3, 1, 16, 24), rotation)
    save_codebooks(saved, tmp_path / "c.safetensors")
    loaded = load_codebooks(tmp_path / "c.safetensors")
    assert torch.equal(loaded.codebooks_LIKd, saved.codebooks_LIKd)
    assert rotation is None if loaded.rotation_LDD is None else torch.equal(loaded.rotation_LDD, rotation)


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_are_no_codebooks_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(damage(tensors(codebooks=torch.zeros(3, 1, 16, 24))))
    with pytest.raises(EnvironmentFault, match=r"c\.safetensors is damaged or no file of codebooks \(") as error:
        load_codebooks(path)
    assert str(error.value).isprintable()
    with pytest.raises(EnvironmentFault, match=r"nowhere is damaged or no file of codebooks \(No such file"):
        load_codebooks(tmp_path / "nowhere")
    with pytest.raises(EnvironmentFault, match="is damaged or no file of codebooks"):
        load_codebooks(tmp_path)


@given(st.binary() | st.binary(max_size=60).map(lambda header: len(header).to_bytes(8, "little") + header))
def test_any_bytes_are_no_codebooks(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "c.safetensors"
    path.write_bytes(data)
    with pytest.raises(EnvironmentFault, match=r"c\.safetensors is damaged or no file of codebooks"):
        load_codebooks(path)


@pytest.mark.parametrize("damage", [*DAMAGES, lambda b: tensors(codebooks=torch.zeros(3, 1, 8, 24))])
def test_damaged_files_are_replaced_with_a_warning(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    made = {SPEC: Codebooks(torch.randn(3, 1, 16, 24))}
    path = cached_codebooks({"seed": 0}, [SPEC], SHAPE, tmp_path, lambda missing: made)[SPEC]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="is damaged .* training its codebooks again"):
        assert cached_codebooks({"seed": 0}, [SPEC], SHAPE, tmp_path, lambda missing: made) == {SPEC: path}
    assert path.read_bytes() == whole
    assert cached_codebooks({"seed": 0}, [SPEC], SHAPE, tmp_path, lambda missing: pytest.fail("made again"))
