"""The same collectives over gloo, PyTorch's CPU transport, for comparison on the same links.

gloo negotiates each operation and is built for large tensors: an all-gather of a few hundred bytes takes milliseconds.
It does not separate waiting for a peer from the transfer, so all blocked time counts as ``wire_s``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from testbed.comm.group import Group, Handle, Timing, even_shares
from testbed.device.traffic import Traffic
from testbed.errors import CommError


class GlooGroup(Group):
    """Ranks that find each other through a shared file, and communicate from the data address ``address``.

    store: path of the file.
    """

    def __init__(self, rank: int, world: int, address: str, store: str, timeout_s: float = 30.0):
        self.rank, self.world, self.traffic = rank, world, Traffic()
        distributed: Any = dist  # bound from C++, without type information
        gloo = distributed.ProcessGroupGloo
        # PyTorch has no public name for the choice of an address: GLOO_SOCKET_IFNAME chooses an interface and takes its
        # first address, and the data address is the second one of ``lo``. tests/comm/test_gloo.py uses these names.
        options = gloo._Options()
        options._timeout = timedelta(seconds=timeout_s)
        options._devices = [gloo.create_device(hostname=address)]
        self._gloo: Any = gloo(distributed.FileStore(store, world), rank, world, options)

    def all_gather(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        # gloo gathers equal sizes only, so ranks with fewer rows pad them. Padding does not count as payload.
        longest = max(rows)
        padded = local
        if local.shape[0] < longest:
            padded = torch.cat([local, local.new_zeros((longest - local.shape[0], *local.shape[1:]))])
        received = [torch.empty_like(padded) for _ in rows]
        size = local.element_size() * math.prod(local.shape[1:])
        others_bytes = size * (sum(rows) - rows[self.rank])
        self._run("all_gather", lambda: self._gloo.allgather([received], [padded.contiguous()]), others_bytes)
        return torch.cat([part[:count] for part, count in zip(received, rows, strict=True)])

    def all_gather_async(self, local: Tensor, rows: Sequence[int]) -> Handle:
        """Blocking: gloo makes progress only inside its calls, so the operation is complete when this returns."""
        return self._done(self.all_gather(local, rows))

    def share_sum_async(self, local: Tensor) -> Handle:
        """Blocking, as ``all_gather_async``."""
        rows = even_shares(len(local), self.world)
        return self._done(self.all_gather(self.reduce_scatter(local, rows), rows))

    def all_reduce(self, local: Tensor) -> Tensor:
        total = local.clone()
        chunks = even_shares(local.numel(), self.world)
        moved = 2 * local.numel() - chunks[self.rank] - chunks[(self.rank + 1) % self.world]
        self._run("all_reduce", lambda: self._gloo.allreduce([total]), moved * local.element_size())
        return total

    def reduce_scatter(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        parts = local.split(list(rows))
        received = self._exchange_parts("reduce_scatter", parts, [rows[self.rank]] * self.world)
        return torch.stack(received).sum(0)

    def all_to_all(self, local: Tensor, rows: Sequence[int], received_rows: Sequence[int]) -> Tensor:
        return torch.cat(self._exchange_parts("all_to_all", local.split(list(rows)), received_rows))

    def send(self, tensor: Tensor, peer: int) -> None:
        self._run("send", lambda: self._gloo.send([tensor.contiguous()], peer, 0), 0)

    def recv(self, shape: Sequence[int], dtype: torch.dtype, peer: int) -> Tensor:
        result = torch.empty(tuple(shape), dtype=dtype)
        self._run("recv", lambda: self._gloo.recv([result], peer, 0), result.nbytes)
        return result

    def sendrecv(self, tensor: Tensor, to: int, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        result = torch.empty(tuple(shape), dtype=dtype)
        begin = time.monotonic()
        works = [self._gloo.recv([result], source, 2), self._gloo.send([tensor.contiguous()], to, 2)]
        for work in works:
            self._wait("sendrecv", lambda work=work: work)
        self._count_received(begin, result.nbytes)
        return result

    def exchange_async(
        self, sends: Mapping[int, Tensor], received_bytes: Mapping[int, int], senders: int = 1
    ) -> Handle:
        """Blocking, as ``all_gather_async``."""
        received = {peer: torch.empty(size, dtype=torch.uint8) for peer, size in received_bytes.items()}
        begin = time.monotonic()
        works = [self._gloo.recv([part], peer, 3) for peer, part in received.items()]
        works += [self._gloo.send([message.contiguous()], peer, 3) for peer, message in sends.items()]
        for work in works:
            self._wait("exchange", lambda work=work: work)
        self._count_received(begin, sum(received_bytes.values()))
        return self._done(torch.cat([torch.empty(0, dtype=torch.uint8), *received.values()]))

    def barrier(self) -> None:
        self._wait("barrier", self._gloo.barrier)

    def close(self) -> None:
        self._gloo = None

    def _exchange_parts(self, operation: str, parts: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """Send part r to each rank r, and receive ``rows[r]`` rows from it."""
        received = [parts[self.rank].new_empty((count, *parts[self.rank].shape[1:])) for count in rows]
        received[self.rank].copy_(parts[self.rank])
        begin = time.monotonic()
        others = [(self.rank + step) % self.world for step in range(1, self.world)]
        works = [self._gloo.recv([received[peer]], peer, 1) for peer in others]
        works += [self._gloo.send([parts[peer].contiguous()], peer, 1) for peer in others]
        for work in works:
            self._wait(operation, lambda work=work: work)
        self._count_received(begin, sum(received[peer].nbytes for peer in others))
        return received

    def _done(self, result: Tensor) -> Handle:
        """The handle of a completed operation."""
        future: Future[tuple[Tensor, list[Timing]]] = Future()
        future.set_result((result, []))
        return Handle(future, self)

    def _run(self, operation: str, start: Callable[[], dist.Work], received_bytes: int) -> None:
        begin = time.monotonic()
        self._wait(operation, start)
        self._count_received(begin, received_bytes)

    def _count_received(self, begin: float, received_bytes: int) -> None:
        self.traffic.received_bytes += received_bytes
        self.traffic.wire_s += time.monotonic() - begin

    def _wait(self, operation: str, start: Callable[[], dist.Work]) -> None:
        try:
            start().wait()
        except RuntimeError as error:
            raise CommError(f"gloo {operation} on rank {self.rank} failed: {error}") from error

    def _finish_async(self, future: Future[tuple[Tensor, list[Timing]]]) -> Tensor:
        return future.result()[0]
