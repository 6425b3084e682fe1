"""The kernels and the memory traffic of formulas are those of the calls that torch makes in each segment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.device_check import example_codebooks
from experiments.measurement.segment_times import describe
from experiments.measurement.turns import LocalGroup, in_turns
from testbed.device.clock import DeviceClock
from testbed.methods import load_method
from testbed.methods.base import CodebookMethod, Method
from testbed.models.vit import VisionTransformer, VitConfig
from testbed.work import Work

WORLD = 2
SIZES = VitConfig(layers=2, hidden=192, heads=3, patch=8, tokens=64, classes=10)
# Operators that start no kernel: they allocate, or give another view of the same memory.
FREE = ("empty", "empty_like", "new_empty", "empty_strided", "detach", "alias", "_unsafe_view")
# Of a log-sum-exp: maximum, absolute value, comparison, replacement, difference, exponential, sum, logarithm, addition.
COMPOSED = {"logsumexp": 9}
# Segments of which NumPy computes a part, which is not seen here, or which read some rows of a table: launches at most.
UNSEEN = ("astra: encode", "astra: keys")
UNCOUNTED = 0.12  # share of the traffic that formulas may leave out: biases, scales, one number for each row
# Of a lossy codec, topk has no passes (testbed/comm/codecs.py), and a division into a buffer is counted twice here.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("single", {}),
    ("tensor", {}),
    ("tensor", {"sync": "star", "codec": "fp16"}),
    ("tensor", {"sync": "gather", "codec": "int8"}),
    ("tensor", {"codec": "int4"}),
    ("megatron_sp", {"codec": "int8"}),
    ("galaxy", {}),
    ("sequence", {"gather": "kv"}),
    ("sequence", {"gather": "x", "codec": "int4"}),
    ("ring", {"directions": 2}),
    ("block", {"blocks": 1}),
    ("prism", {}),
    ("pipeline", {"codec": "fp16"}),
    ("astra", {"codebook_size": 64}),
    ("astra", {"codebook_size": 64, "optimizations": "lut+overlap+chunks4", "groups": 4}),
]


class KernelCounter(TorchDispatchMode):
    """Counts the kernels that torch starts, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.moved_bytes = 0
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name, returns = func.overloadpacket.__name__, func._schema.returns
        is_view = bool(returns) and all(each.alias_info and not each.alias_info.is_write for each in returns)
        read, written = (_tensors(part) for part in ((args, kwargs), result))
        if is_view or name in FREE or not sum(tensor.numel() for tensor in written):
            return result
        into_buffer = bool(kwargs) and "out" in kwargs
        self.launches += COMPOSED.get(name, 1)
        self.names.append(name)
        self.moved_bytes += sum(map(_bytes, read)) + (0 if into_buffer else sum(map(_bytes, written)))
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.device.type != "meta"]


def _bytes(tensor: Tensor) -> int:
    """Of different numbers: an expanded dimension repeats the same ones."""
    different = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(different) * tensor.element_size() if tensor.numel() else 0


class CountingClock(DeviceClock):
    """Computes segments and counts their kernels. seen: (name, work, counter)."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method
        self.seen: list[tuple[str, Work, KernelCounter]] = []

    def run(self, kind: str, work: Work, segment: Callable[[], Any]) -> Any:
        with KernelCounter() as counter:
            output = segment()
        described = describe(self.method, work, segment)
        if described.computes:
            self.seen.append((described.name, work, counter))
        return output


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=lambda value: str(value))
@torch.no_grad()
def test_formulas_count_what_torch_runs(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, method = VisionTransformer(SIZES).eval(), load_method(name, **settings)
    inputs = torch.randn(1, 3, 64, 64)
    if isinstance(method, CodebookMethod):
        method.attach(example_codebooks(model, inputs, method.codebook_spec))
    world = 1 if name == "single" else WORLD
    shards = [method.shard(model, rank, world) for rank in range(world)]

    def rank_main(group: LocalGroup) -> list[tuple[str, Work, KernelCounter]]:
        clock = CountingClock(method)
        method.forward(inputs, shards[group.rank], group, clock)
        return clock.seen

    seen = [each for rank in in_turns(world, rank_main) for each in rank]
    assert len(seen) > 2 or name == "single"
    for segment, work, counter in seen:
        if segment in UNSEEN:
            assert work.launches >= counter.launches, segment
            continue
        assert work.launches == counter.launches, f"{segment}: {' '.join(counter.names)}"
        assert (1 - UNCOUNTED) * counter.moved_bytes <= work.moved_bytes <= 1.05 * counter.moved_bytes, segment
