"""Files of training: whole or refused, in one line that names the file and what was expected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from testbed.astra.training.checkpoints import load_checkpoint, load_result, open_result, save_checkpoint, save_result
from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings
from testbed.astra.training.vit import AstraVit
from testbed.errors import EnvironmentFault
from tests.astra.toy import CONFIG, tiny_model, tiny_student
from tests.test_git_lfs import POINTER


def trained(student: AstraVit) -> torch.optim.Optimizer:
    """The optimizer after one step."""
    optimizer = torch.optim.AdamW(student.parameters())
    student(torch.randn(4, 3, 8, 8), [8, 8]).logits.square().sum().backward()
    optimizer.step()
    return optimizer


def test_a_checkpoint_restores_everything(tmp_path: Path) -> None:
    path, student = tmp_path / "c.safetensors", tiny_student()
    optimizer = trained(student)
    save_checkpoint(path, student, optimizer, {"step": 7})
    other = tiny_student()
    other_optimizer = torch.optim.AdamW(other.parameters())
    load_checkpoint(path, other, other_optimizer)
    assert all(
        torch.equal(a, b) for a, b in zip(student.state_dict().values(), other.state_dict().values(), strict=True)
    )
    moments, restored = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert moments.keys() == restored.keys()
    assert all(torch.equal(moments[i][key], restored[i][key]) for i in moments for key in moments[i])
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"], "no temporary file stays"


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:20], lambda b: b"", lambda b: b"\xff" * 99]
)
def test_damaged_files(tmp_path: Path, damage) -> None:
    path, student = tmp_path / "c.safetensors", tiny_student()
    save_checkpoint(path, student, trained(student), {})
    path.write_bytes(damage(path.read_bytes()))
    before = student.model.head.weight.clone()
    for load in (
        lambda: load_checkpoint(path, student, torch.optim.AdamW(student.parameters())),
        lambda: load_result(path, student),
        lambda: open_result(path, CONFIG),
    ):
        with pytest.raises(EnvironmentFault, match=r"c\.safetensors is damaged or not a safetensors file: ") as caught:
            load()
        assert "\n" not in str(caught.value)
    assert torch.equal(student.model.head.weight, before)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path, student = tmp_path / "r.safetensors", tiny_student()
    with torch.no_grad():
        student.model.head.bias[1] = float("nan")
    save_result(path, student)
    with pytest.raises(EnvironmentFault, match=r"r\.safetensors has NaN or infinity in 1 of the \d+ numbers of model"):
        open_result(path, CONFIG)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.safetensors").write_text(POINTER)
    with pytest.raises(EnvironmentFault, match=r"r\.safetensors is a Git LFS pointer, .*; run git lfs pull"):
        open_result(tmp_path / "r.safetensors", CONFIG)


@pytest.mark.parametrize("state", [{}, {"state": "["}, {"state": "[1]"}])
def test_files_without_a_state_are_refused(tmp_path: Path, state: dict[str, str]) -> None:
    save_file({"head": torch.ones(2)}, tmp_path / "r.safetensors", state)
    with pytest.raises(
        EnvironmentFault, match=r"r\.safetensors has no state of a training run in its header; expected"
    ):
        open_result(tmp_path / "r.safetensors", CONFIG)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"none\.safetensors cannot be read: No such file or dir"):
        open_result(tmp_path / "none.safetensors", CONFIG)


def test_files_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    save_result(path, tiny_student(groups=2))
    with pytest.raises(EnvironmentFault, match=r"tensor codebooks is \[2, 2, 8, 12\]; expected \[2, 4, 8, 6\]"):
        load_result(path, tiny_student(groups=4))
    with pytest.raises(EnvironmentFault, match="holds codebooks, expected none"):
        load_result(path, AstraVit(tiny_model()))
    save_result(path, AstraVit(tiny_model()))
    with pytest.raises(EnvironmentFault, match="tensor codebooks is none; expected"):
        load_result(path, tiny_student())
    with pytest.raises(EnvironmentFault, match="holds a model of sizes .*'tokens': 16.*expected .*'tokens': 25"):
        open_result(path, replace(CONFIG, tokens=25))
    save_checkpoint(path, tiny_student(), trained(tiny_student()), {})
    with pytest.raises(EnvironmentFault, match="tensor codebooks is none; expected"):
        load_result(path, tiny_student())
    with pytest.raises(EnvironmentFault, match="holds optimizer.0.exp_avg, expected none"):
        load_result(path, AstraVit(tiny_model()))


def test_results_have_no_averages_and_these_restart(tmp_path: Path) -> None:
    path, student = tmp_path / "r.safetensors", tiny_student()
    student(torch.randn(4, 3, 8, 8), [8, 8])
    save_result(path, student)
    other = tiny_student()
    load_result(path, other)
    assert student.quantizer is not None and other.quantizer is not None
    assert torch.equal(other.quantizer.codebooks_LIKd, student.quantizer.codebooks_LIKd)
    assert torch.equal(other.quantizer.sums_LIKd, other.quantizer.codebooks_LIKd)
    assert other.quantizer.settings.noise == 0.3
    plain = AstraVit(tiny_model(3))
    save_result(path, plain)
    assert torch.equal(open_result(path, CONFIG).model.position, plain.model.position)


def test_stages_rotation_and_int8_tokens_come_back(tmp_path: Path) -> None:
    path, generator = tmp_path / "r.safetensors", torch.Generator().manual_seed(1)
    codebooks = torch.randn(2, 2 * 2, 8, 12, generator=generator)
    rotation = torch.linalg.qr(torch.randn(2, 24, 24, generator=generator)).Q.contiguous()
    quantizer = VectorQuantizer(codebooks, VqSettings(num_quantizers=2), rotation)
    student = AstraVit(tiny_model(), quantizer, int8_tokens=1).eval()
    save_result(path, student)
    opened, pixels = open_result(path, CONFIG), torch.randn(3, 3, 8, 8, generator=generator)
    assert torch.equal(opened(pixels, [8, 8]).logits, student(pixels, [8, 8]).logits)
    assert opened.describe() == student.describe()
    with pytest.raises(EnvironmentFault, match=r"holds pre_rotation, expected none"):
        load_result(path, AstraVit(tiny_model(), VectorQuantizer(codebooks, VqSettings(num_quantizers=2))))
    for num_quantizers, other_rotation in ((1, rotation), (2, None)):
        settings = VqSettings(num_quantizers=num_quantizers)
        other = VectorQuantizer(codebooks[:, : 2 * num_quantizers], settings, other_rotation)
        plain = AstraVit(tiny_model(), other).eval()
        plain.model.load_state_dict(student.model.state_dict())
        assert not torch.allclose(plain(pixels, [8, 8]).logits, student(pixels, [8, 8]).logits)
