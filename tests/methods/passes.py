"""Forward passes on ranks that are threads, connected by real TCP. Bytes, messages and MACs are counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from testbed.comm.exchange import Operation
from testbed.comm.tcp import TcpGroup
from testbed.device.clock import DeviceClock
from testbed.methods.astra import Astra
from testbed.methods.base import Method
from testbed.models.decoder import Decoder
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import Kernel, count_kernels
from tests.conftest import run_ranks

# label -> (method, settings): all equal the plain model with a lossless codec
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("single", {}),
    "tensor": ("tensor", {}),
    "tensor star": ("tensor", {"sync": "star"}),
    "tensor gather": ("tensor", {"sync": "gather"}),
    "megatron_sp": ("megatron_sp", {}),
    "galaxy": ("galaxy", {}),
    "sequence": ("sequence", {}),
    "sequence kv": ("sequence", {"gather": "kv"}),
    "ring": ("ring", {}),
    "ring both ways": ("ring", {"directions": 2}),
    "pipeline": ("pipeline", {}),
}


# (number of ranks, their speeds): equal shares, and shares by speed
SPLITS: list[tuple[int, tuple[float, ...]]] = [
    *((world, ()) for world in (1, 2, 3, 4)),
    (2, (0.5, 1.0)),
    (3, (1.0, 1.0, 0.5)),
    (4, (3.0, 2.0, 1.0, 1.0)),
]


# Functions that multiply matrices. One without a formula below fails the test, so that none goes uncounted.
PRODUCT = re.compile(r"mm$|mv$|matmul|linear|attention|dot|conv|einsum|cdist|inner$|outer$|kron|multi_head")


class MacCounter(TorchFunctionMode):
    """Counts the multiply-accumulates of each matrix product that this thread calls."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("linear", "matmul", "mm", "bmm"):
            self.macs += result.numel() * args[0].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.macs += result.numel() * args[1].shape[-1]
        elif "scaled_dot_product" in name:
            query, key = args[:2]
            self.macs += 2 * query.numel() * key.shape[-2]
        else:
            assert not PRODUCT.search(name), f"{name} multiplies matrices; give it a formula here"
        return result


@dataclass
class CountedForward:
    """One rank's forward pass: its output, and what the group, the clock and MacCounter counted in it."""

    output: Output
    received_bits: int
    sent_bits: int
    messages: int
    kernels: Counter[Kernel]
    counted_macs: int


def counted_forward(method: Method, shard: Any, inputs: Tensor, group: TcpGroup, clock: DeviceClock) -> CountedForward:
    clock.restart()
    group.barrier()
    group.traffic.reset()
    forward = partial(method.forward, inputs, shard, group, clock)
    with MacCounter() as counter, counted_messages(group) as messages:
        output = clock.record(forward) if clock.mode == "execute" else forward()
    traffic = group.traffic
    received = 8 * traffic.received_bytes
    kernels = count_kernels(clock.works)
    return CountedForward(output, received, 8 * traffic.sent_bytes, len(messages), kernels, counter.macs)


@contextmanager
def counted_messages(group: TcpGroup) -> Iterator[list[int]]:
    """A list that grows by the sender of each message that this rank receives in the context."""
    messages: list[int] = []
    queue = group._wire.queue

    def counting(
        name: str, sends: dict[int, memoryview], receives: dict[int, memoryview], senders: int = 1
    ) -> Operation:
        messages.extend(receives)
        return queue(name, sends, receives, senders)

    group._wire.queue = counting
    try:
        yield messages
    finally:
        group._wire.queue = queue


def execute_and_replay(
    method: Method, model: VisionTransformer | Decoder, inputs: Tensor, world: int
) -> list[tuple[CountedForward, CountedForward]]:
    def rank_main(group: TcpGroup) -> tuple[CountedForward, CountedForward]:
        torch.set_num_threads(1)
        shard = method.shard(model, group.rank, world)
        clock = DeviceClock()
        executed = counted_forward(method, shard, inputs, group, clock)
        clock.mode = "replay"
        return executed, counted_forward(method, shard, inputs, group, clock)

    return run_ranks(world, rank_main)


def check_accounts(
    passes: list[tuple[CountedForward, CountedForward]], method: Method, model: VisionTransformer | Decoder
) -> None:
    """Formulas equal counters on each rank. The replay has the same outputs and bytes, and computes nothing."""
    world = len(passes)
    formula_bits = method.received_bits(model.shape, world)
    assert sum(executed.sent_bits for executed, _ in passes) == sum(formula_bits)
    assert max(executed.messages for executed, _ in passes) == method.messages(model.shape, world)
    for rank, (executed, replayed) in enumerate(passes):
        macs = method.macs(model.shape, rank, world)
        assert executed.received_bits == replayed.received_bits == formula_bits[rank]
        assert executed.kernels == replayed.kernels == method.work(model.shape, rank, world).counts()
        # With dedup the formula counts all codewords, and the pass computes those that occur.
        upper_bound = isinstance(method, Astra) and "dedup" in method.optimizations and world > 1
        assert executed.counted_macs <= macs if upper_bound else executed.counted_macs == macs
        assert replayed.counted_macs == 0
        assert executed.sent_bits == replayed.sent_bits
        for field in ("hidden", "logits", "codes"):
            first, second = getattr(executed.output, field), getattr(replayed.output, field)
            if first is None or second is None:
                assert first is second is None
            else:
                assert torch.equal(first, second)
        messages = zip(executed.output.messages, replayed.output.messages, strict=True)
        assert all(torch.equal(first, second) for first, second in messages)


def joined_hidden(passes: list[tuple[CountedForward, CountedForward]], tokens: int) -> Tensor:
    """The content tokens [T, D] of all ranks, joined; where each rank has all tokens, those of the first rank."""
    parts = [
        (executed.output.start, executed.output.hidden) for executed, _ in passes if executed.output.hidden is not None
    ]
    starts, hidden = [start for start, _ in parts], [rows for _, rows in parts]
    if all(len(rows) == tokens for rows in hidden):
        return hidden[0]
    assert starts == [sum(len(rows) for rows in hidden[:rank]) for rank in range(len(hidden))]
    return torch.cat(hidden)
