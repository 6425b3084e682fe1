"""Ranks that take turns in one process: one computes at a time, with all threads of torch, and nothing is sent.

Each rank is a thread that runs only while it holds the baton. It hands the baton over where it waits for a message.
Messages pass by reference. So the time of a segment is that of its arithmetic alone, as on a device of its own. All
segments run in one further thread, because every thread that computes gets a team of OpenMP threads of its own, and the
teams would keep the cores busy for a while after each segment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from testbed.comm.group import Group, Handle, Timing
from testbed.device.traffic import Traffic
from testbed.errors import CommError

T = TypeVar("T")
WAIT_S = 600.0  # for a message: the segments that its sender, and all ranks before it, compute meanwhile


class Table:
    """Where ranks lay down messages for each other. baton: who has it runs."""

    def __init__(self) -> None:
        self.baton = threading.Condition()
        self._messages: dict[tuple[int, int, int], Tensor] = {}  # (source, target, number) -> message
        self._failed = False

    def put(self, source: int, target: int, number: int, message: Tensor) -> None:
        """Lay down a message. The caller has the baton."""
        self._messages[source, target, number] = message
        self.baton.notify_all()

    def take(self, source: int, target: int, number: int) -> Tensor:
        """Wait for a message and take it. CommError if a rank has failed, or after WAIT_S."""
        key = (source, target, number)
        came = self.baton.wait_for(lambda: key in self._messages or self._failed, WAIT_S)
        if key not in self._messages:
            reason = "a rank has failed" if came else f"none came in {WAIT_S:g} s"
            raise CommError(f"rank {target} waits for a message of rank {source}: {reason}", [source])
        return self._messages.pop(key)

    def fail(self) -> None:
        """Let all ranks that wait end."""
        self._failed = True
        self.baton.notify_all()


class _Arrival(Future[tuple[Tensor, list[Timing]]]):
    """An operation whose messages are taken when its result is asked for. It may be asked for again."""

    def __init__(self, receive: Callable[[], Tensor]):
        super().__init__()
        self._receive = receive

    def result(self, timeout: float | None = None) -> tuple[Tensor, list[Timing]]:
        if not self.done():
            self.set_result((self._receive(), []))
        return super().result(timeout)


class LocalGroup(Group):
    """One rank's view of ranks that share a Table. Nothing is counted, and sums are made of whole tensors."""

    def __init__(self, rank: int, world: int, table: Table):
        self.rank, self.world, self.traffic = rank, world, Traffic()
        self._table = table
        self._put, self._taken = [0] * world, [0] * world  # messages so far, to and from each rank

    def all_gather(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        return torch.cat(self._from_all([local] * self.world)())

    def all_gather_async(self, local: Tensor, rows: Sequence[int]) -> Handle:
        arrive = self._from_all([local] * self.world)
        return Handle(_Arrival(lambda: torch.cat(arrive())), self)

    def share_sum_async(self, local: Tensor) -> Handle:
        arrive = self._from_all([local] * self.world)
        return Handle(_Arrival(lambda: _sum(arrive())), self)

    def all_reduce(self, local: Tensor) -> Tensor:
        return _sum(self._from_all([local] * self.world)())

    def reduce_scatter(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        return _sum(self._from_all(local.split(list(rows)))())

    def all_to_all(self, local: Tensor, rows: Sequence[int], received_rows: Sequence[int]) -> Tensor:
        return torch.cat(self._from_all(local.split(list(rows)))())

    def send(self, tensor: Tensor, peer: int) -> None:
        self._lay(tensor, peer)

    def recv(self, shape: Sequence[int], dtype: torch.dtype, peer: int) -> Tensor:
        return self._expect(peer)()

    def sendrecv(self, tensor: Tensor, to: int, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        self._lay(tensor, to)
        return self._expect(source)()

    def exchange_async(
        self, sends: Mapping[int, Tensor], received_bytes: Mapping[int, int], senders: int = 1
    ) -> Handle:
        for peer, message in sends.items():
            self._lay(message, peer)
        arriving = [self._expect(peer) for peer in received_bytes]
        return Handle(_Arrival(lambda: torch.cat([arrive() for arrive in arriving])), self)

    def barrier(self) -> None:
        self._from_all([torch.empty(0)] * self.world)()

    def close(self) -> None:
        """Nothing is open."""

    def _finish_async(self, future: Future[tuple[Tensor, list[Timing]]]) -> Tensor:
        return future.result()[0]

    def _from_all(self, parts: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Send ``parts[r]`` to each rank r. Returns what waits for those of all ranks, in the order of ranks."""
        for peer, part in enumerate(parts):
            self._lay(part, peer)
        arriving = [self._expect(peer) for peer in range(self.world)]
        return lambda: [arrive() for arrive in arriving]

    def _lay(self, message: Tensor, peer: int) -> None:
        self._table.put(self.rank, peer, self._put[peer], message)
        self._put[peer] += 1

    def _expect(self, peer: int) -> Callable[[], Tensor]:
        """What waits for the next message from a rank."""
        number = self._taken[peer]
        self._taken[peer] += 1
        return lambda: self._table.take(peer, self.rank, number)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    """In a new tensor, in the order of ranks."""
    return torch.stack(list(terms)).sum(0)


def in_turns(world: int, rank_main: Callable[[LocalGroup], T]) -> list[T]:
    """Run ``rank_main`` on each rank, one at a time. Returns their results. Raises the first rank's error."""
    table = Table()

    def main(rank: int) -> T:
        with table.baton:
            try:
                return rank_main(LocalGroup(rank, world, table))
            except BaseException:
                table.fail()
                raise

    with ThreadPoolExecutor(world) as threads:
        futures = [threads.submit(main, rank) for rank in range(world)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, CommError)):  # the cause before what it caused
        raise error
    return [future.result() for future in futures]
