"""Rotations before quantisation: the same codebooks lose less of numbers that do not depend on each other.

Products of codebooks cut a token into groups, and what two groups have in common is paid for twice. So a token is
turned into its principal components first, and these are dealt to the groups so that all have as much to say
(optimised product quantisation, its parametric solution: Ge et al., CVPR 2013). The turn is orthogonal, of the model's
own statistics, known to all devices, and costs no bits; what arrives is turned back.

Shape suffixes: N samples, D numbers of a token, G groups.
"""

from __future__ import annotations

import heapq
from typing import Literal, get_args

import torch
from torch import Tensor

from testbed.errors import ConfigError, nearest

Rotation = Literal["none", "components"]
SMALLEST = 1e-12  # of a variance, so that there is a logarithm


def check_rotation(rotation: str) -> None:
    """Raise ConfigError for a name that does not exist."""
    if rotation not in get_args(Rotation):
        raise ConfigError("astra.rotation", rotation, nearest(rotation, get_args(Rotation)))


def components_rotation(x_ND: Tensor, groups: int, parts: int = 1) -> Tensor:
    """An orthogonal matrix [D, D], float32: rows of ``x_ND`` times its transpose are dealt, balanced, to the groups.

    parts: how many equal parts of a token, such as keys and values, are turned each for itself; where ``groups`` cannot
    be divided among them, all are one part.
    """
    parts = 1 if groups % parts else parts
    return torch.block_diag(*(_of_part(x_Nd, groups // parts) for x_Nd in x_ND.double().chunk(parts, dim=1))).float()


def _of_part(x_Nd: Tensor, groups: int) -> Tensor:
    """Principal directions as rows, group after group."""
    variances, directions = torch.linalg.eigh(torch.cov(x_Nd.T))  # ascending; directions are columns
    return directions.T[_dealt(variances.clamp(min=SMALLEST).log().tolist(), groups)]


def _dealt(logs: list[float], groups: int) -> list[int]:
    """Indices of all components, group after group: the largest first to the group of the least product with room."""
    lowest = min(logs)  # so that no logarithm is negative, and a product grows with each component
    room, chosen = len(logs) // groups, [[] for _ in range(groups)]
    heap = [(0.0, group) for group in range(groups)]
    for index in sorted(range(len(logs)), key=lambda at: -logs[at]):
        total, group = heapq.heappop(heap)
        chosen[group].append(index)
        if len(chosen[group]) < room:
            heapq.heappush(heap, (total + logs[index] - lowest, group))
    return [index for group in chosen for index in group]
