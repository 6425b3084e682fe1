"""What a recorded pass keeps for its replays, and what it drops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from testbed.comm.group import Group
from testbed.comm.tcp import TcpGroup
from testbed.device.clock import DeviceClock
from testbed.device.replay import ReplayCache
from testbed.methods import load_method
from testbed.work import NO_WORK
from tests.conftest import run_ranks
from tests.methods.small import pixels, small_model


def kept_bytes(tree: Any) -> int:
    """Bytes of all storages of tensors in nested tuples, lists and dicts; a tensor on ``meta`` has none."""
    return sum(dict(storages(tree)).values())


def storages(tree: Any) -> Iterator[tuple[int, int]]:
    """(address, bytes) of each tensor's storage."""
    if isinstance(tree, Tensor):
        if not tree.is_meta:
            yield tree.untyped_storage().data_ptr(), tree.untyped_storage().nbytes()
    elif isinstance(tree, dict):
        yield from storages(list(tree.values()))
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from storages(item)


def two_layers(cache: ReplayCache, sent: list[Tensor]) -> Tensor:
    """A pass over a residual stream that sends a part of its first layer."""
    stream, part = cache.add(lambda: (torch.ones(1000), torch.full((8,), 2.0)))
    sent.append(part.view(2, 4)[1].clone())
    return cache.add(lambda: stream[:4] + sent[-1])


def test_values_that_only_segments_read_are_dropped() -> None:
    cache, sent = ReplayCache(), []
    result = cache.record(lambda: two_layers(cache, sent))
    assert result.tolist() == [3.0] * 4
    assert kept_bytes(cache._outputs) == 4 * (8 + 4)  # the part and the result of the pass
    for _ in range(2):
        cache.rewind()
        stream, part = cache.next()
        assert stream.shape == (1000,) and stream.dtype == torch.float32 and stream.is_contiguous()
        assert part.tolist() == [2.0] * 8
        assert cache.next().tolist() == [3.0] * 4


def test_reading_a_dropped_value_fails() -> None:
    cache = ReplayCache()
    cache.record(lambda: two_layers(cache, []))
    stream, _ = cache.next()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        stream.tolist()
    with pytest.raises((RuntimeError, NotImplementedError, TypeError), match="meta"):
        stream.numpy()


def test_metadata_reads_keep_no_values() -> None:
    cache = ReplayCache()

    def forward() -> tuple[object, ...]:
        x = cache.add(lambda: torch.ones(3, 4))
        described = x.shape, x.dtype, x.device, x.ndim, x.nbytes, x.itemsize, x.is_meta, x.requires_grad, len(x)
        called = x.size(0), x.stride(), x.dim(), x.numel(), x.element_size(), x.storage_offset(), x.is_contiguous()
        return *described, *called

    cache.record(forward)
    assert kept_bytes(cache._outputs) == 0


def test_a_view_keeps_its_whole_storage() -> None:
    cache = ReplayCache()

    def forward() -> Tensor:
        whole = cache.add(lambda: torch.arange(6.0))
        half = cache.add(lambda: whole[3:])  # the same memory
        return half.sum()

    assert cache.record(forward).item() == 12
    assert cache.next().tolist() == [0, 1, 2, 3, 4, 5] and cache.next().tolist() == [3, 4, 5]


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


def test_outputs_keep_their_containers() -> None:
    cache = ReplayCache()
    outputs: list[Any] = [Pair(torch.ones(1), None), [torch.ones(2)], {"a": (torch.ones(3), 7)}, torch.ones(4).max(0)]
    cache.record(lambda: [cache.add(lambda output=output: output) and None for output in outputs])
    pair, items, mapping, structseq = (cache.next() for _ in outputs)
    assert isinstance(pair, Pair) and pair.first.is_meta and pair.second is None
    assert isinstance(items, list) and items[0].shape == (2,)
    assert mapping["a"][0].shape == (3,) and mapping["a"][1] == 7
    assert type(structseq) is type(outputs[3]) and structseq.indices.is_meta


@pytest.mark.parametrize("name", ["sequence", "ring", "pipeline"])
def test_a_method_keeps_what_it_sends_and_what_it_returns(name: str) -> None:
    model, method = small_model("plain"), load_method(name)
    inputs = pixels(model)

    def main(group: TcpGroup) -> None:
        clock = DeviceClock()
        shard = method.shard(model, group.rank, group.world)
        output = clock.record(lambda: method.forward(inputs, shard, group, clock))
        returned_bytes = kept_bytes([output.hidden, output.logits])
        assert kept_bytes(clock._cache._outputs) == group.traffic.sent_bytes + returned_bytes

    run_ranks(2, main)


def send_both_ways(group: Group, x: Tensor) -> Tensor:
    """A message to the other one of two ranks, and the message from there."""
    group.send(x, 1 - group.rank)
    return group.recv(x.shape, x.dtype, 1 - group.rank)


# Every operation in which one of two ranks sends a tensor of 4 numbers.
OPERATIONS: dict[str, Callable[[Group, Tensor], Tensor]] = {
    "all_gather": lambda group, x: group.all_gather(x, [4, 4]),
    "all_gather_async": lambda group, x: group.all_gather_async(x, [4, 4]).wait(),
    "share_sum_async": lambda group, x: group.share_sum_async(x).wait(),
    "all_reduce": lambda group, x: group.all_reduce(x),
    "reduce_scatter": lambda group, x: group.reduce_scatter(x, [3, 1]),
    "all_to_all": lambda group, x: group.all_to_all(x, [3, 1], [[3, 3], [1, 1]][group.rank]),
    "send": send_both_ways,
    "sendrecv": lambda group, x: group.sendrecv(x, 1 - group.rank, x.shape, x.dtype, 1 - group.rank),
    "exchange_async": lambda group, x: group.exchange_async({1 - group.rank: x}, {1 - group.rank: 4}).wait(),
}


def test_every_operation_that_sends_is_tried() -> None:
    assert set(OPERATIONS) == Group.__abstractmethods__ - {"recv", "barrier", "close", "_finish_async"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_reads_what_it_sends(name: str) -> None:
    operation = OPERATIONS[name]

    def main(group: TcpGroup) -> None:
        clock, own = DeviceClock(), torch.arange(4, dtype=torch.uint8) + 10 * group.rank

        def forward() -> Tensor:
            return operation(group, clock.run("compute", NO_WORK, own.clone))

        recorded = clock.record(forward)
        clock.mode = "replay"
        clock.restart()
        assert torch.equal(forward(), recorded)

    run_ranks(2, main)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_tensor_without_values_is_never_sent(name: str) -> None:
    def main(group: TcpGroup) -> None:
        with pytest.raises((RuntimeError, NotImplementedError, TypeError), match="meta"):
            OPERATIONS[name](group, torch.empty(4, dtype=torch.uint8, device="meta"))
        assert group.traffic.sent_bytes == 0

    run_ranks(2, main)


def test_a_failed_pass_stops_recording() -> None:
    cache = ReplayCache()
    with pytest.raises(RuntimeError):
        cache.record(lambda: cache.add(lambda: torch.ones(2) @ torch.ones(3)))
    read = set(cache._reads.read)
    torch.ones(1).clone()
    assert cache._reads.read == read
