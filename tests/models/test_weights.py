"""Seeded weights, and files of weights that processes share."""

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from testbed.datasets.photographs import photograph
from testbed.errors import ConfigError, EnvironmentFault
from testbed.models.weights import (
    PRETRAINED,
    ModelChoice,
    build_model,
    load_model,
    save_model,
    save_tensors,
)

VIT_BASE = ModelChoice("vit_base", layers=12, hidden=768, heads=12, patch=16, classes=1000, pretrained=False)
SMALL = ModelChoice("vit_base", layers=3, hidden=96, heads=4, patch=8, classes=10, pretrained=False)
VIT_S14 = PRETRAINED["vit_s14"]
GOLDEN_SEEDED = [-1.1992, -0.8043, 0.9697, -0.7427]

needs_photographs = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is missing")


def test_fewer_layers_are_the_first_layers():
    deep, flat = build_model(SMALL, 16, 7).state_dict(), build_model(replace(SMALL, layers=2), 16, 7).state_dict()
    assert set(flat) < set(deep)
    assert all(torch.equal(deep[name], tensor) for name, tensor in flat.items())


def test_tokens_change_the_position_embeddings_only():
    few, many = build_model(SMALL, 16, 7).state_dict(), build_model(SMALL, 64, 7).state_dict()
    assert [name for name in few if not torch.equal(few[name], many[name])] == ["position"]


def test_seeds_and_names_give_different_tensors():
    one, other = build_model(SMALL, 16, 0), build_model(SMALL, 16, 1)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert not torch.equal(one.blocks[0].attn.q.weight, one.blocks[1].attn.q.weight)
    assert not one.training and not any(p.requires_grad for p in one.parameters())


def test_golden_numbers_of_the_seeded_model():
    pixels = torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)
    logits = build_model(SMALL, 16, 0)(pixels)[0]
    torch.testing.assert_close(logits[:4], torch.tensor(GOLDEN_SEEDED), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@needs_photographs
def test_attention_and_residuals_of_vit_base_are_not_trivial():
    model = build_model(replace(VIT_BASE, layers=4), 256, 0)
    x_BSD = model.embed(photograph(256, 16))
    for block in model.blocks:
        h_BSD = block.norm1(x_BSD)
        q_BHSK, k_BHSK = block.attn.query(h_BSD), block.attn.keys_values(h_BSD)[0]
        p_BHSS = (q_BHSK @ k_BHSK.mT / q_BHSK.shape[-1] ** 0.5).softmax(-1)
        keys_attended = torch.special.entr(p_BHSS).sum(-1).exp().mean()
        assert 0.2 < keys_attended / 257 < 0.8
        y_BSD = block(x_BSD)
        assert 0.2 < (y_BSD - x_BSD).norm() / x_BSD.norm() < 1
        x_BSD = y_BSD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "model.layers=0: must be 1 or more"),
        ({"heads": 5}, "model.heads=5: must divide the hidden width 96"),
        ({"layers": 1001}, "model.layers=1001: must be at most 1000, except with network=analytic"),
        ({"hidden": 10**6, "heads": 8}, "model.hidden=1000000: makes weights of 144000.9 GB together with the other"),
        (
            {"patch": 10**6},
            "model.hidden=96: makes weights of 1152000.0 GB together with the other sizes; this machine",
        ),
        ({"classes": 0}, "model.classes=0: must be 1 or more"),
        ({"pretrained": True}, "model.name=vit_base: unknown; did you mean vit_s14? allowed: vit_s14"),
    ],
)
def test_impossible_sizes_raise(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_model(replace(SMALL, **change), 16, 0)


def test_a_model_without_tokens_raises():
    with pytest.raises(ConfigError, match="tokens=0: must be 1 or more"):
        build_model(SMALL, 0, 0)


def test_pretrained_sizes_are_fixed():
    with pytest.raises(ConfigError, match="model.layers=2: only 12: the sizes of pretrained vit_s14 are fixed"):
        build_model(replace(VIT_S14, layers=2), 16, 0)


def test_saved_and_loaded_models_are_equal(tmp_path: Path):
    model = build_model(SMALL, 16, 3)
    save_model(model, tmp_path / "new" / "m.safetensors")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.safetensors"]
    loaded = load_model(SMALL, 16, tmp_path / "new" / "m.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_models_for_different_numbers_of_tokens_share_a_file(tmp_path: Path):
    """A second file has the position embeddings, which replace those of the first one."""
    save_model(build_model(SMALL, 16, 3), tmp_path / "all.safetensors")
    other = build_model(SMALL, 36, 3)
    save_tensors({"position": other.state_dict()["position"].contiguous()}, tmp_path / "positions.safetensors")
    loaded = load_model(SMALL, 36, tmp_path / "all.safetensors", tmp_path / "positions.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("damage", ["missing", "truncated", "other model", "pickle", "other dtype", "folder"])
def test_unusable_files_raise_in_one_line(tmp_path: Path, damage):
    path = tmp_path / "m.safetensors"
    if damage != "missing":
        save_model(build_model(SMALL, 16, 3), path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "pickle":
        torch.save(build_model(SMALL, 16, 3).state_dict(), path)
    elif damage == "other dtype":
        save_model(build_model(SMALL, 16, 3).to(torch.float16), path)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    choice = replace(SMALL, layers=4) if damage == "other model" else SMALL
    with pytest.raises(EnvironmentFault, match="m.safetensors: no usable weights of vit_base at 16 tokens") as caught:
        load_model(choice, 16, path)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_raise(tmp_path: Path):
    model = build_model(SMALL, 16, 3)
    model.blocks[1].attn.k.weight[5, 5] = float("inf")
    save_model(model, tmp_path / "m.safetensors")
    found = r"\(m\.safetensors has NaN or infinity in 1 of the 9216 numbers of blocks\.1\.attn\.k\.weight\)$"
    with pytest.raises(EnvironmentFault, match=found):
        load_model(SMALL, 16, tmp_path / "m.safetensors")


READER = """
import sys, torch
from pathlib import Path
from testbed.models.weights import ModelChoice, load_model
model = load_model(ModelChoice("vit_base", 3, 96, 4, 8, 10, False), 16, Path(sys.argv[1]))
model(torch.zeros(1, 3, 32, 32))
of_file, resident, copied = False, 0, 0
for line in open("/proc/self/smaps"):
    word = line.split()
    if "-" in word[0] and not word[0].endswith(":"):
        of_file = line.rstrip().endswith(sys.argv[1])
    elif of_file and word[0] == "Rss:":
        resident += int(word[1])
    elif of_file and word[0] == "Anonymous:":  # pages copied on write no longer belong to the file
        copied += int(word[1])
print(resident, copied)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_loaded_weights_are_mapped_and_never_copied(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    save_model(build_model(SMALL, 16, 3), path)
    result = subprocess.run(
        [sys.executable, "-c", READER, str(path)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    resident_kb, copied_kb = map(int, result.stdout.split())
    assert resident_kb > 0.9 * path.stat().st_size / 1024 and copied_kb == 0
