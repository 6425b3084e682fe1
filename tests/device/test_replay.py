"""What a recorded pass keeps for its replays, and what it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from testbed.device.replay import Tape


def two_layers(tape: Tape, sent: list[Tensor]) -> Tensor:
    """A pass of a residual stream, of whose first layer a part is sent."""
    stream, part = tape.add(lambda: (torch.ones(1000), torch.full((8,), 2.0)))
    sent.append(part.view(2, 4)[1].clone())
    return tape.add(lambda: stream[:4] + sent[-1])


def test_values_that_nothing_beyond_segments_reads_are_not_kept() -> None:
    tape, sent = Tape(), []
    result = tape.record(lambda: two_layers(tape, sent))
    assert result.tolist() == [3.0] * 4
    kept = [leaf for leaf in tree_leaves(tape._outputs) if not leaf.is_meta]
    assert sum(leaf.untyped_storage().nbytes() for leaf in kept) == 4 * (8 + 4)  # the part and the pass's result
    for _ in range(2):
        tape.rewind()
        stream, part = tape.next()
        assert stream.shape == (1000,) and stream.dtype == torch.float32 and stream.is_contiguous()
        assert part.tolist() == [2.0] * 8
        assert tape.next().tolist() == [3.0] * 4


def test_reading_what_was_not_kept_fails() -> None:
    tape = Tape()
    tape.record(lambda: two_layers(tape, []))
    stream, _ = tape.next()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        stream.tolist()
    with pytest.raises((RuntimeError, NotImplementedError, TypeError), match="meta"):
        stream.numpy()


def test_a_view_keeps_what_it_looks_at() -> None:
    tape = Tape()

    def forward() -> Tensor:
        whole = tape.add(lambda: torch.arange(6.0))
        half = tape.add(lambda: whole[3:])  # the same memory
        return half.sum()

    assert tape.record(forward).item() == 12
    assert tape.next().tolist() == [0, 1, 2, 3, 4, 5] and tape.next().tolist() == [3, 4, 5]


def test_a_pass_that_fails_ends_the_watch() -> None:
    tape = Tape()
    with pytest.raises(RuntimeError):
        tape.record(lambda: tape.add(lambda: torch.ones(2) @ torch.ones(3)))
    noted = len(tape._readers.read)
    torch.ones(1).clone()
    assert len(tape._readers.read) == noted
