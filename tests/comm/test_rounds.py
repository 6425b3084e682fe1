"""Large messages go in rounds: no two senders share a receiver's link, however late or unequal the senders are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from testbed.comm.pacing import Unpaced
from testbed.comm.routes import RankLinks
from testbed.comm.tcp import TcpGroup
from testbed.comm.wire import BRIEF_S
from tests.conftest import run_ranks

RATE_BPS = 1e6
BRIEF_BYTES = int(BRIEF_S * RATE_BPS / 8)
ROWS = [1, 4, 2, 3]  # of so many bytes that each message needs its turn
ROW = torch.zeros(2 * BRIEF_BYTES, dtype=torch.uint8)
WORLD = len(ROWS)


def paced(group: TcpGroup) -> None:
    group.set_links(RankLinks.one(group.rank, group.world, Unpaced(), RATE_BPS))


def gather(group: TcpGroup) -> Tensor:
    return group.all_gather(ROW.repeat(ROWS[group.rank], 1), ROWS)


def gather_later(group: TcpGroup) -> Tensor:
    return group.all_gather_async(ROW.repeat(ROWS[group.rank], 1), ROWS).wait()


def scatter(group: TcpGroup) -> Tensor:
    return group.reduce_scatter(ROW.repeat(sum(ROWS), 1), ROWS)


def swap(group: TcpGroup) -> Tensor:
    return group.all_to_all(ROW.repeat(sum(ROWS), 1), ROWS, [ROWS[group.rank]] * WORLD)


@pytest.mark.parametrize("late", range(WORLD))
@pytest.mark.parametrize("exchange", [gather, gather_later, scatter, swap])
def test_no_rank_sends_to_a_receiver_that_still_waits_for_an_earlier_round(
    exchange: Callable[[TcpGroup], Tensor], late: int
) -> None:
    events: list[tuple[str, int, int]] = []  # what happened, to whom, in which round
    lock = threading.Lock()

    def main(group: TcpGroup) -> None:
        paced(group)
        run, rounds = group._wire.run, iter(range(1, WORLD))

        def noted(name: str, sends: dict[int, memoryview], receives: dict[int, memoryview]) -> object:
            number = next(rounds)
            with lock:
                events.extend(("sent to", peer, number) for peer in sends)
            timing = run(name, sends, receives)
            with lock:
                events.append(("done by", group.rank, number))
            return timing

        if group.rank == late:
            time.sleep(0.05)
        group._wire.run = noted  # pyright: ignore[reportAttributeAccessIssue]
        exchange(group)

    run_ranks(WORLD, main)
    assert len(events) == 2 * WORLD * (WORLD - 1)
    for place, (what, rank, number) in enumerate(events):
        if what == "sent to" and number > 1:
            assert ("done by", rank, number - 1) in events[:place]


@given(data=st.data())
@settings(max_examples=25)
def test_ranks_with_unequal_messages_agree_on_rounds(data: st.DataObject) -> None:
    """Some ranks may have brief messages only, and send them at once, while others go in rounds."""
    world = data.draw(st.integers(2, 4))
    lengths = st.sampled_from([0, 1, BRIEF_BYTES, BRIEF_BYTES + 1, 3 * BRIEF_BYTES])
    sizes = data.draw(st.lists(st.lists(lengths, min_size=world, max_size=world), min_size=world, max_size=world))
    sent = [[torch.full((size,), 10 * rank + peer) for peer, size in enumerate(row)] for rank, row in enumerate(sizes)]

    def main(group: TcpGroup) -> Tensor:
        paced(group)
        mine = torch.cat(sent[group.rank]).to(torch.uint8)
        return group.all_to_all(mine, sizes[group.rank], [row[group.rank] for row in sizes])

    for rank, received in enumerate(run_ranks(world, main)):
        assert torch.equal(received, torch.cat([row[rank] for row in sent]).to(torch.uint8))


def test_a_message_may_wait_as_long_as_earlier_messages_take() -> None:
    """A receiver that is busy with other large messages is not taken for one that is gone."""

    def main(group: TcpGroup) -> int:
        paced(group)
        group._wire.timeout_s = 0.05
        if group.rank == 0:
            time.sleep(0.3)
        return len(gather(group))

    assert run_ranks(WORLD, main) == [sum(ROWS)] * WORLD
