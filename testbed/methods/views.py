"""Parts of a model's weight matrices, as layers that share its memory."""

from __future__ import annotations

from torch import Tensor, nn

ALL = slice(None)


def linear_view(linear: nn.Linear, outputs: slice = ALL, inputs: slice = ALL, bias: bool = True) -> nn.Linear:
    """A layer that computes some outputs from some inputs of ``linear``. Its weights are views."""
    weight = linear.weight[outputs, inputs]
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias, device="meta")
    part.weight = parameter_view(weight)
    if bias:
        part.bias = parameter_view(linear.bias[outputs])
    return part


def parameter_view(part: Tensor) -> nn.Parameter:
    """A part of a parameter, as a parameter that shares its memory."""
    return nn.Parameter(part.detach(), requires_grad=False)
