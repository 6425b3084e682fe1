"""Ranks that take turns in one process: their collectives, and that one rank's failure ends all."""

from __future__ import annotations

import threading

import pytest
import torch

from experiments.measurement.turns import LocalGroup, in_turns
from testbed.errors import CommError


def part(rank: int, rows: int) -> torch.Tensor:
    return torch.full((rows, 2), float(rank + 1))


def test_collectives_give_what_real_groups_give() -> None:
    rows = [3, 1, 2]
    full = torch.cat([part(rank, count) for rank, count in enumerate(rows)])

    def rank_main(group: LocalGroup) -> None:
        own, summed = part(group.rank, rows[group.rank]), torch.full((6, 2), 6.0)
        later = group.all_gather_async(own, rows)
        group.barrier()
        assert torch.equal(group.all_gather(own, rows), full)
        assert torch.equal(later.wait(), full) and torch.equal(later.wait(), full)
        term = torch.full((6, 2), group.rank + 1.0)
        assert torch.equal(group.all_reduce(term), summed)
        assert torch.equal(group.share_sum_async(term).wait(), summed)
        assert torch.equal(group.reduce_scatter(term, rows), summed[: rows[group.rank]])
        received = group.all_to_all(torch.arange(6.0), rows, [rows[group.rank]] * 3)
        first = sum(rows[: group.rank])
        assert torch.equal(received, torch.arange(first, first + rows[group.rank]).float().repeat(3))

    in_turns(3, rank_main)


def test_messages_keep_their_order_however_they_are_awaited() -> None:
    def rank_main(group: LocalGroup) -> list[float]:
        peer = 1 - group.rank
        first = group.exchange_async({peer: torch.ones(1)}, {peer: 1})
        second = group.exchange_async({peer: 2 * torch.ones(1)}, {peer: 1})
        return [float(second.wait()), float(first.wait())]

    assert in_turns(2, rank_main) == [[2.0, 1.0], [2.0, 1.0]]


def test_one_rank_runs_at_a_time() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def rank_main(group: LocalGroup) -> None:
        nonlocal running, most
        for _ in range(20):
            with lock:
                running += 1
                most = max(most, running)
            sum(range(2000))
            with lock:
                running -= 1
            group.barrier()

    in_turns(4, rank_main)
    assert most == 1


def test_the_error_of_a_rank_ends_all_and_is_the_one_that_is_raised() -> None:
    def rank_main(group: LocalGroup) -> None:
        if group.rank == 1:
            raise ValueError("the cause")
        group.barrier()

    with pytest.raises(ValueError, match="the cause"):
        in_turns(3, rank_main)


def test_a_message_that_never_comes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.measurement.turns.WAIT_S", 0.05)
    with pytest.raises(CommError, match="rank 0 waits for a message of rank 1"):
        in_turns(2, lambda group: group.recv([1], torch.float32, 1) if group.rank == 0 else None)
