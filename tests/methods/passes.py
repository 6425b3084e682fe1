"""Forward passes on ranks that are threads, connected by real TCP, with everything counted that formulas speak of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from testbed.comm.exchange import Operation
from testbed.comm.tcp import TcpGroup
from testbed.device.clock import DeviceClock
from testbed.methods.astra import Astra
from testbed.methods.base import Method
from testbed.models.decoder import Decoder
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from tests.conftest import run_ranks

# label -> (method, settings); all equal the plain model as long as numbers travel as they are
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


class MacCounter(TorchDispatchMode):
    """Counts the multiply-accumulates of every matrix product that really runs in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.macs += args[0].numel() * args[1].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.macs += args[1].numel() * args[2].shape[-1]
        elif name.startswith("_scaled_dot_product"):
            self.macs += 2 * args[0].numel() * args[1].shape[-2]
        return func(*args, **(kwargs or {}))


@dataclass
class ForwardTiming:
    output: Output
    received_bits: int
    sent_bits: int
    messages: int
    clock_macs: int
    moved_bytes: int
    counted_macs: int


def one_pass(method: Method, shard: Any, inputs: Tensor, group: TcpGroup, clock: DeviceClock) -> ForwardTiming:
    clock.restart()
    group.barrier()
    group.traffic.reset()
    forward = partial(method.forward, inputs, shard, group, clock)
    with MacCounter() as counter, counted_messages(group) as messages:
        output = clock.record(forward) if clock.mode == "execute" else forward()
    traffic = group.traffic
    received = 8 * traffic.received_bytes
    return ForwardTiming(
        output, received, 8 * traffic.sent_bytes, len(messages), clock.macs, clock.moved_bytes, counter.macs
    )


@contextmanager
def counted_messages(group: TcpGroup) -> Iterator[list[int]]:
    """The rank that each message comes from which this rank receives meanwhile."""
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
) -> list[tuple[ForwardTiming, ForwardTiming]]:
    def rank_main(group: TcpGroup) -> tuple[ForwardTiming, ForwardTiming]:
        torch.set_num_threads(1)
        shard = method.shard(model, group.rank, world)
        clock = DeviceClock()
        executed = one_pass(method, shard, inputs, group, clock)
        clock.mode = "replay"
        return executed, one_pass(method, shard, inputs, group, clock)

    return run_ranks(world, rank_main)


def check_accounts(
    passes: list[tuple[ForwardTiming, ForwardTiming]], method: Method, model: VisionTransformer | Decoder
) -> None:
    """Formulas equal counters on every rank; the replay has the same outputs and bytes, and computes nothing."""
    world = len(passes)
    formula_bits = method.received_bits(model.shape, world)
    assert sum(executed.sent_bits for executed, _ in passes) == sum(formula_bits)
    assert max(executed.messages for executed, _ in passes) == method.messages(model.shape, world)
    for rank, (executed, replayed) in enumerate(passes):
        macs = method.macs(model.shape, rank, world)
        assert executed.received_bits == replayed.received_bits == formula_bits[rank]
        assert executed.clock_macs == replayed.clock_macs == macs
        assert executed.moved_bytes == method.moved_bytes(model.shape, rank, world)
        # per codeword, the formula counts all that may occur
        most = isinstance(method, Astra) and "dedup" in method.optimizations and world > 1
        assert executed.counted_macs <= macs if most else executed.counted_macs == macs
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


def joined_hidden(passes: list[tuple[ForwardTiming, ForwardTiming]], tokens: int) -> Tensor:
    """The content tokens [T, D] put together from all ranks; where several ranks have all, the first one's."""
    parts = [(passed.output.start, passed.output.hidden) for passed, _ in passes if passed.output.hidden is not None]
    starts, hidden = [start for start, _ in parts], [rows for _, rows in parts]
    if all(len(rows) == tokens for rows in hidden):
        return hidden[0]
    assert starts == [sum(len(rows) for rows in hidden[:rank]) for rank in range(len(hidden))]
    return torch.cat(hidden)
