"""What a recorded pass keeps for its replays, and what it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from testbed.device.replay import ReplayCache


def two_layers(cache: ReplayCache, sent: list[Tensor]) -> Tensor:
    """A pass of a residual stream, of whose first layer a part is sent."""
    stream, part = cache.add(lambda: (torch.ones(1000), torch.full((8,), 2.0)))
    sent.append(part.view(2, 4)[1].clone())
    return cache.add(lambda: stream[:4] + sent[-1])


def test_values_that_nothing_beyond_segments_reads_are_not_kept() -> None:
    cache, sent = ReplayCache(), []
    result = cache.record(lambda: two_layers(cache, sent))
    assert result.tolist() == [3.0] * 4
    kept = [leaf for leaf in tree_leaves(cache._outputs) if not leaf.is_meta]
    assert sum(leaf.untyped_storage().nbytes() for leaf in kept) == 4 * (8 + 4)  # the part and the pass's result
    for _ in range(2):
        cache.rewind()
        stream, part = cache.next()
        assert stream.shape == (1000,) and stream.dtype == torch.float32 and stream.is_contiguous()
        assert part.tolist() == [2.0] * 8
        assert cache.next().tolist() == [3.0] * 4


def test_reading_what_was_not_kept_fails() -> None:
    cache = ReplayCache()
    cache.record(lambda: two_layers(cache, []))
    stream, _ = cache.next()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        stream.tolist()
    with pytest.raises((RuntimeError, NotImplementedError, TypeError), match="meta"):
        stream.numpy()


def test_a_view_keeps_what_it_looks_at() -> None:
    cache = ReplayCache()

    def forward() -> Tensor:
        whole = cache.add(lambda: torch.arange(6.0))
        half = cache.add(lambda: whole[3:])  # the same memory
        return half.sum()

    assert cache.record(forward).item() == 12
    assert cache.next().tolist() == [0, 1, 2, 3, 4, 5] and cache.next().tolist() == [3, 4, 5]


def test_a_pass_that_fails_ends_the_watch() -> None:
    cache = ReplayCache()
    with pytest.raises(RuntimeError):
        cache.record(lambda: cache.add(lambda: torch.ones(2) @ torch.ones(3)))
    noted = len(cache._readers.read)
    torch.ones(1).clone()
    assert len(cache._readers.read) == noted
