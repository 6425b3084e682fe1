"""Collectives over direct TCP connections between all pairs of ranks.

The sending order matters on a star of equal links. If all ranks send to rank 0 first, N-1 senders share its link while
the other links idle (incast, 1.2 to 1.8 times the ideal). Here, rank n sends to n+1, n+2, ... while it receives from
n-1, n-2, ..., so at any time each link carries one sender's data. Large messages go in rounds, one round for each
distance (pairwise exchange, Thakur et al. 2005). A rank that ran ahead would share one receiver's link and leave
another link idle, so a large message waits until its receiver is ready (rendezvous). Small messages go without rounds.
All-reduce is a ring. Other topologies have other all-gather algorithms: testbed.comm.schedule.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from testbed.comm.exchange import Exchange
from testbed.comm.group import Group, Handle, Timing, even_shares
from testbed.comm.message import NOTHING
from testbed.comm.pacing import Unpaced
from testbed.comm.routes import RankLinks
from testbed.comm.schedule import DIRECT, PAIRWISE, stages_of
from testbed.comm.tcp_info import TcpCounters, congestion_control, counters
from testbed.device.traffic import Traffic

Stage = tuple[dict[int, memoryview], dict[int, memoryview]]  # by peer: payload to send, buffer to receive into


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as bytes, without a copy."""
    return tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else NOTHING


def _views(tensors: dict[int, Tensor]) -> dict[int, memoryview]:
    return {peer: as_bytes(tensor) for peer, tensor in tensors.items()}


class TcpGroup(Group):
    """Ranks connected by TCP. ``testbed.comm.connect`` makes the connections.

    to, source: the connections that carry messages to and from each other rank. timeout_s: seconds that an operation
    may take beyond the time of its bytes on the link; after that, a CommError names the missing ranks.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        to: dict[int, socket.socket],
        source: dict[int, socket.socket],
        timeout_s: float = 30.0,
    ):
        self.rank, self.world = rank, world
        self.traffic = Traffic()
        self._sending = tuple(to.values())
        self._by_peer = {peer: (to[peer], source[peer]) for peer in to}
        self._connections = (*self._sending, *source.values())
        self._wire = Exchange(rank, to, source, timeout_s, self.traffic)
        self._others = [(rank + step) % world for step in range(1, world)]  # in sending order
        self._worker: ThreadPoolExecutor | None = None
        self._pending: Future[tuple[Tensor, list[Timing]]] | None = None
        # The last operation that queues its messages in several steps.
        self._multi_step: Future[tuple[Tensor, list[Timing]]] | None = None
        self.set_links(RankLinks.one(rank, world, Unpaced(), float("inf")))

    def set_links(self, links: RankLinks, time_scale: float = 1.0) -> None:
        """Send over these routes, and gather with their algorithm, from now on.

        time_scale: factor by which the links are slower than those of the emulated devices.
        """
        self._links = links
        self._wire.set_links(links, time_scale)

    @contextmanager
    def hosts(self, message_s: Callable[[int], float], computing_s: float) -> Iterator[None]:
        """Within the context, messages take what the hosts of the emulated devices add to them.

        message_s: payload bytes -> seconds on the devices' clock. computing_s: how long peers may compute before they
        send, beyond the time limit of an operation.
        """
        before = self._wire.host_message_s, self._wire.computing_s
        self._wire.host_message_s, self._wire.computing_s = message_s, computing_s
        try:
            yield
        finally:
            self._wire.host_message_s, self._wire.computing_s = before

    def all_gather(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        self._complete_pending()
        result, timings = self._gather(local, rows)
        self._count_blocked(*timings)
        return result

    def all_gather_async(self, local: Tensor, rows: Sequence[int]) -> Handle:
        result, stages = self._stages(local, rows)
        if len(stages) == 1:
            return self._queue("all_gather", *stages[0], result)
        return self._submit(lambda: (result, self._run_gather(stages)))

    def share_sum_async(self, local: Tensor) -> Handle:
        rows = even_shares(len(local), self.world)
        parts = local.contiguous().split(rows)
        return self._submit(lambda: self._share_sum(parts, rows))

    def all_reduce(self, local: Tensor) -> Tensor:
        self._complete_pending()
        total = local.clone()
        flat = total.view(-1)
        chunks = list(flat.split(even_shares(flat.numel(), self.world)))
        n, right, left = self.world, (self.rank + 1) % self.world, (self.rank - 1) % self.world
        received = torch.empty_like(chunks[0])
        for step in range(n - 1):  # each rank ends up with the full sum of chunk rank + 1
            target = chunks[(self.rank - step - 1) % n]
            part = received[: target.numel()]
            self._exchange("all_reduce", {right: chunks[(self.rank - step) % n]}, {left: part})
            target += part
        for step in range(n - 1):
            outgoing, incoming = chunks[(self.rank + 1 - step) % n], chunks[(self.rank - step) % n]
            self._exchange("all_reduce", {right: outgoing}, {left: incoming})
        return total

    def reduce_scatter(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        self._complete_pending()
        total, timings = self._reduce(local.contiguous().split(list(rows)))
        self._count_blocked(*timings)
        return total

    def all_to_all(self, local: Tensor, rows: Sequence[int], received_rows: Sequence[int]) -> Tensor:
        self._complete_pending()
        parts = local.contiguous().split(list(rows))
        result = local.new_empty((sum(received_rows), *local.shape[1:]))
        received = result.split(list(received_rows))
        received[self.rank].copy_(parts[self.rank])
        sends = {peer: parts[peer] for peer in self._others}
        receives = {peer: received[peer] for peer in self._others}
        self._count_blocked(*self._rounds("all_to_all", _views(sends), _views(receives)))
        return result

    def send(self, tensor: Tensor, peer: int) -> None:
        self._complete_pending()
        self._exchange("send", {peer: tensor.contiguous()}, {})

    def recv(self, shape: Sequence[int], dtype: torch.dtype, peer: int) -> Tensor:
        self._complete_pending()
        result = torch.empty(tuple(shape), dtype=dtype)
        self._exchange("send", {}, {peer: result})
        return result

    def sendrecv(self, tensor: Tensor, to: int, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        self._complete_pending()
        result = torch.empty(tuple(shape), dtype=dtype)
        self._exchange("send", {to: tensor.contiguous()}, {source: result})
        return result

    def exchange_async(
        self, sends: Mapping[int, Tensor], received_bytes: Mapping[int, int], senders: int = 1
    ) -> Handle:
        result = torch.empty(sum(received_bytes.values()), dtype=torch.uint8)
        parts = result.split(list(received_bytes.values()))
        outgoing = _views({peer: message.contiguous() for peer, message in sends.items()})
        incoming = _views(dict(zip(received_bytes, parts, strict=True)))
        return self._queue("send", outgoing, incoming, result, senders)

    def barrier(self) -> None:
        self._complete_pending()
        distance = 1
        while distance < self.world:  # dissemination barrier (Hensgen et al. 1988): log2 N rounds
            to, source = (self.rank + distance) % self.world, (self.rank - distance) % self.world
            self._wire.run("barrier", {to: NOTHING}, {source: NOTHING})
            distance *= 2

    def counters(self) -> dict[int, TcpCounters | None]:
        """For each peer, what has gone to it and come from it so far; None where the system does not count."""
        return {peer: counters(connections) for peer, connections in self._by_peer.items()}

    def congestion_control(self) -> list[str]:
        """The congestion controls of the connections that carry this rank's data, each once; empty without names."""
        return congestion_control(self._sending)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.shutdown(wait=False, cancel_futures=True)
        self._wire.close()
        for connection in self._connections:
            connection.close()

    def _gather(self, local: Tensor, rows: Sequence[int]) -> tuple[Tensor, list[Timing]]:
        result, stages = self._stages(local, rows)
        return result, self._run_gather(stages)

    def _stages(self, local: Tensor, rows: Sequence[int]) -> tuple[Tensor, list[Stage]]:
        """The result of an all-gather, filled with the own rows only, and the stages that fill the rest."""
        result = local.new_empty((sum(rows), *local.shape[1:]))
        result.split(list(rows))[self.rank].copy_(local)
        whole, ends = as_bytes(result), [0, *itertools.accumulate(rows)]
        row_bytes = len(whole) // max(1, ends[-1])
        blocks = [whole[first * row_bytes : end * row_bytes] for first, end in itertools.pairwise(ends)]
        algorithm = self._links.all_gather
        if algorithm == PAIRWISE and self._wire.is_brief(max(map(len, blocks))):
            algorithm = DIRECT
        stages = []
        for sent, received in stages_of(self.rank, algorithm, self.world, self._links.subnets):
            outgoing = {transfer.target: transfer.cut(blocks[transfer.owner]) for transfer in sent}
            incoming = {transfer.source: transfer.cut(blocks[transfer.owner]) for transfer in received}
            stages.append((outgoing, incoming))
        return result, stages

    def _reduce(self, parts: Sequence[Tensor]) -> tuple[Tensor, list[Timing]]:
        received = {peer: torch.empty_like(parts[self.rank]) for peer in self._others}
        sends = {peer: parts[peer] for peer in self._others}
        timings = self._rounds("reduce_scatter", _views(sends), _views(received))
        total = torch.zeros_like(parts[self.rank])
        for rank in range(self.world):  # in rank order, so that the sum does not depend on who computes it
            total += parts[rank] if rank == self.rank else received[rank]
        return total, timings

    def _share_sum(self, parts: Sequence[Tensor], rows: Sequence[int]) -> tuple[Tensor, list[Timing]]:
        total, summed = self._reduce(parts)
        result, gathered = self._gather(total, rows)
        return result, [*summed, *gathered]

    def _queue(
        self,
        operation: str,
        sends: dict[int, memoryview],
        receives: dict[int, memoryview],
        result: Tensor,
        senders: int = 1,
    ) -> Handle:
        """Queue messages behind those in progress. If some of these are not queued yet, wait for them first.

        ``receives`` are parts of ``result``.
        """
        if self._multi_step is not None and not self._multi_step.done():
            return self._submit(lambda: (result, [self._wire.run(operation, sends, receives, senders)]))
        queued = self._wire.queue(operation, sends, receives, senders)
        self._pending = self._thread().submit(lambda: (result, [self._wire.finish(queued)]))
        return Handle(self._pending, self)

    def _submit(self, operation: Callable[[], tuple[Tensor, list[Timing]]]) -> Handle:
        """Run an operation that queues its messages after the earlier operations are complete."""
        self._pending = self._multi_step = self._thread().submit(operation)
        return Handle(self._pending, self)

    def _thread(self) -> ThreadPoolExecutor:
        """The thread that runs asynchronous operations in order."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="comm")
        return self._worker

    def _rounds(self, operation: str, sends: dict[int, memoryview], receives: dict[int, memoryview]) -> list[Timing]:
        """Send ``sends[r]`` to each other rank r and fill ``receives[r]`` from it, in one step or in rounds."""
        direct = self._links.all_gather == DIRECT
        if direct or self._wire.is_brief(max(map(len, (*sends.values(), *receives.values())), default=0)):
            return [self._wire.run(operation, sends, receives)]
        stages: list[Stage] = []
        for step in range(1, self.world):
            to, source = (self.rank + step) % self.world, (self.rank - step) % self.world
            stages.append(({to: sends[to]}, {source: receives[source]}))
        return self._run_rounds(operation, stages)

    def _run_gather(self, stages: list[Stage]) -> list[Timing]:
        if self._links.all_gather == PAIRWISE:
            return self._run_rounds("all_gather", stages)
        return [self._wire.run("all_gather", sends, receives) for sends, receives in stages]

    def _run_rounds(self, operation: str, stages: list[Stage]) -> list[Timing]:
        if len(stages) == 1:
            return [self._wire.run(operation, *stages[0])]
        return [timing for stage in stages for timing in self._wire.run_when_ready(operation, *stage)]

    def _exchange(self, operation: str, sends: dict[int, Tensor], receives: dict[int, Tensor]) -> None:
        self._count_blocked(self._wire.run(operation, _views(sends), _views(receives)))

    def _complete_pending(self) -> None:
        """Wait for the operations in progress, so that operations keep their order on the wire."""
        if self._pending is not None:
            self._pending.exception()

    def _finish_async(self, future: Future[tuple[Tensor, list[Timing]]]) -> Tensor:
        begin = time.monotonic()
        result, timings = future.result()
        for timing in timings:  # the caller was blocked only after ``begin``
            done, first = max(begin, timing.done_s), max(begin, timing.first_s)
            self._count_blocked(Timing(max(begin, timing.begin_s), min(first, done), done, timing.due_s))
        if future is self._pending:
            self._pending = None
        return result

    def _count_blocked(self, *timings: Timing) -> None:
        for timing in timings:
            self.traffic.block(timing.begin_s, timing.first_s, timing.done_s, timing.due_s)
