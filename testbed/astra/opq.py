"""Rotation before quantization: optimized product quantization, parametric solution (Ge et al., CVPR 2013).

Product quantization cuts a token into groups and quantizes each group alone, so correlation between groups costs bits.
A token is therefore rotated to its principal components first. The components are allocated to the groups so that the
products of variances are balanced. The rotation is orthogonal and is estimated from the model's own activations. All
devices know it, so it costs no bits. The receiver rotates back.

Shape suffixes: N samples, D numbers of a token, d numbers of a part, G groups.
"""

from __future__ import annotations

import heapq
from typing import Literal, get_args

import torch
from torch import Tensor

from testbed.errors import ConfigError, nearest

PreRotation = Literal["none", "pca"]
SMALLEST_VARIANCE = 1e-12  # keeps logarithms finite


def check_pre_rotation(pre_rotation: str) -> None:
    """Raise ConfigError (key ``astra.pre_rotation``) for an unknown name."""
    if pre_rotation not in get_args(PreRotation):
        raise ConfigError("astra.pre_rotation", pre_rotation, nearest(pre_rotation, get_args(PreRotation)))


def pca_rotation(x_ND: Tensor, groups: int, parts: int = 1) -> Tensor:
    """An orthogonal matrix [D, D], float32. ``x_ND`` times its transpose has principal components, group after group.

    parts: how many equal parts of a token, such as keys and values, are rotated separately. A token is one part where
    ``groups`` is not a multiple of ``parts``.
    """
    parts = 1 if groups % parts else parts
    rotations = (_part_rotation(x_Nd, groups // parts) for x_Nd in x_ND.double().chunk(parts, dim=1))
    return torch.block_diag(*rotations).float()


def _part_rotation(x_Nd: Tensor, groups: int) -> Tensor:
    """Principal directions [d, d] as rows, group after group."""
    variances, directions = torch.linalg.eigh(torch.cov(x_Nd.T))  # ascending; directions are columns
    return directions.T[_balanced_order(variances.clamp(min=SMALLEST_VARIANCE).log().tolist(), groups)]


def _balanced_order(log_variances: list[float], groups: int) -> list[int]:
    """Indices of all components, group after group.

    Greedy allocation: each component, in order of falling variance, goes to the group with the smallest product of
    variances among those that are not full.
    """
    lowest = min(log_variances)  # subtracted below, so that every component makes a group's product larger
    group_size, members = len(log_variances) // groups, [[] for _ in range(groups)]
    heap = [(0.0, group) for group in range(groups)]
    for component in sorted(range(len(log_variances)), key=lambda index: -log_variances[index]):
        log_product, group = heapq.heappop(heap)
        members[group].append(component)
        if len(members[group]) < group_size:
            heapq.heappush(heap, (log_product + log_variances[component] - lowest, group))
    return [component for group in members for component in group]
