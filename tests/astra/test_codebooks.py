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
from testbed.astra.codebooks import cached_codebooks, fingerprint, load_codebooks, save_codebooks
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
    lambda b: tensors(codebooks=torch.zeros(3, 1, 0, 24)),
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
    with pytest.raises(EnvironmentFault, match=r"c\.safetensors is damaged or no") as error:
        load_codebooks(path)
    assert str(error.value).isprintable()
    with pytest.raises(EnvironmentFault, match="nowhere cannot be read: No such file or directory"):
        load_codebooks(tmp_path / "nowhere")
    with pytest.raises(EnvironmentFault, match="cannot be read: Is a directory"):
        load_codebooks(tmp_path)


@given(st.binary() | st.binary(max_size=60).map(lambda header: len(header).to_bytes(8, "little") + header))
def test_any_bytes_are_no_codebooks(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "c.safetensors"
    path.write_bytes(data)
    with pytest.raises(EnvironmentFault, match=r"c\.safetensors is (damaged or no|a Git LFS pointer)"):
        load_codebooks(path)


OTHER_SHAPES: list[Callable[[bytes], bytes]] = [
    lambda b: tensors(codebooks=torch.zeros(3, 1, 8, 24)),
    lambda b: tensors(codebooks=torch.zeros(3, 1, 16, 24), pre_rotation=torch.zeros(3, 24, 24)),
]


@pytest.mark.parametrize("damage", [*DAMAGES, *OTHER_SHAPES])
def test_damaged_files_are_replaced_with_a_warning(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    made = {SPEC: Codebooks(torch.randn(3, 1, 16, 24))}
    path = cached_codebooks({"seed": 0}, [SPEC], SHAPE, tmp_path, lambda missing: made)[SPEC]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="is damaged .* training its codebooks again"):
        assert cached_codebooks({"seed": 0}, [SPEC], SHAPE, tmp_path, lambda missing: made) == {SPEC: path}
    assert path.read_bytes() == whole
    assert cached_codebooks({"seed": 0}, [SPEC], SHAPE, tmp_path, lambda missing: pytest.fail("made again"))


def test_codewords_that_are_not_finite_are_refused_and_made_again(tmp_path: Path) -> None:
    made = {SPEC: Codebooks(torch.randn(3, 1, 16, 24))}
    path = cached_codebooks({"seed": 0}, [SPEC], SHAPE, tmp_path, lambda missing: made)[SPEC]
    whole, damaged = path.read_bytes(), made[SPEC].codebooks_LIKd.clone()
    damaged[1, 0, 3, :5] = float("nan")
    path.write_bytes(tensors(codebooks=damaged))
    found = r"\.safetensors has NaN or infinity in 5 of the 1152 numbers of codebooks"
    with pytest.raises(EnvironmentFault, match=found):
        load_codebooks(path)
    with pytest.warns(UserWarning, match=f"{found}; training its codebooks again"):
        cached_codebooks({"seed": 0}, [SPEC], SHAPE, tmp_path, lambda missing: made)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_number_of_a_model_changes_its_fingerprint(dtype: torch.dtype) -> None:
    model = torch.nn.Linear(40, 30, dtype=dtype)
    prints = {fingerprint(model)}
    with torch.no_grad():
        for place in ((0, 0), (1, 24), (7, 20), (29, 39)):  # the 65th number, and three quarters on
            model.weight[place] += 1
            prints.add(fingerprint(model))
        assert len(prints) == 5
        model.weight = torch.nn.Parameter(model.weight.T.contiguous().view(30, 40))
    assert fingerprint(model) not in prints


def test_a_fingerprint_is_of_names_shapes_and_values_only() -> None:
    model, other = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    reordered = model.weight.T.contiguous().T  # the same numbers in another order in memory
    other.load_state_dict({"weight": reordered, "bias": model.bias}, assign=True)
    assert not other.weight.is_contiguous() and fingerprint(other) == fingerprint(model)
    assert fingerprint(torch.nn.Sequential(model)) != fingerprint(model)
    other.weight = torch.nn.Parameter(model.weight.detach().view(4, 3))
    assert fingerprint(other) != fingerprint(model)
