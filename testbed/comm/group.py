"""The collectives that methods may use, and the traffic that they count.

A ``Group`` is one rank's view of N ranks. Tensors are contiguous CPU tensors. Collectives work along dimension 0, where
ranks may have different numbers of rows. ``Group.traffic`` counts payload: the bytes that the method sends, without
frame and packet headers.

Blocked time has two parts: ``wait_s`` until the first byte of the operation arrives (a peer is still busy, or the
link's latency), and ``wire_s`` from then on. Of an asynchronous operation, only the time in ``Handle.wait`` counts.

An operation reads what it sends with a function of torch, in the thread of its caller. A replay keeps the values of
tensors that were read so (testbed.device.replay).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.device.traffic import Traffic


def even_shares(total: int, world: int) -> list[int]:
    """``total`` items over ``world`` ranks, as evenly as whole items allow. The first ranks get the extra items."""
    share, rest = divmod(total, world)
    return [share + (rank < rest) for rank in range(world)]


@dataclass(frozen=True)
class Timing:
    """Monotonic times of one finished operation: its begin, the arrival of its first byte, and its end.

    due_s: for brief messages, when ideal links and the emulated devices' hosts would have delivered them; else 0.
    """

    begin_s: float
    first_s: float
    done_s: float
    due_s: float = 0.0


class Handle:
    """An operation in progress. ``wait`` returns its result and counts the time for which it blocks the caller."""

    def __init__(self, future: Future[tuple[Tensor, list[Timing]]], group: Group):
        self._future, self._group = future, group

    def wait(self) -> Tensor:
        """Block until the operation is done. Raises CommError as the operation itself would."""
        return self._group._finish_async(self._future)


class Group(ABC):
    """N ranks that exchange tensors. Errors are CommError, which names the missing or misbehaving ranks."""

    rank: int
    world: int
    traffic: Traffic

    @abstractmethod
    def all_gather(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        """Every rank's tensor, concatenated along dimension 0.

        local: [rows[rank], ...], the same trailing shape and dtype on all ranks.
        rows: dimension 0 of each rank's tensor. Returns [sum(rows), ...].
        """

    @abstractmethod
    def all_gather_async(self, local: Tensor, rows: Sequence[int]) -> Handle:
        """``all_gather`` in the background. ``local`` must stay unchanged until ``wait``.

        Several may be in progress. They run one after another.
        """

    @abstractmethod
    def share_sum_async(self, local: Tensor) -> Handle:
        """Sum over ranks in the background: each rank sums its share of dimension 0, then all ranks gather the sums.

        It has fewer rounds than ``all_reduce``, which suits small tensors. ``local`` must stay unchanged until
        ``wait``.
        """

    @abstractmethod
    def all_reduce(self, local: Tensor) -> Tensor:
        """Ring all-reduce (sum) into a new tensor of the same shape. The result is bitwise equal on all ranks."""

    @abstractmethod
    def reduce_scatter(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        """Sum of [sum(rows), ...] over ranks. This rank gets its own [rows[rank], ...] of the sum."""

    @abstractmethod
    def all_to_all(self, local: Tensor, rows: Sequence[int], received_rows: Sequence[int]) -> Tensor:
        """Send ``rows[r]`` rows of ``local`` to each rank r. Returns the received [sum(received_rows), ...]."""

    @abstractmethod
    def send(self, tensor: Tensor, peer: int) -> None:
        """Send to one peer. Returns when the kernel has all bytes."""

    @abstractmethod
    def recv(self, shape: Sequence[int], dtype: torch.dtype, peer: int) -> Tensor:
        """Receive one tensor of this shape and dtype from one peer."""

    @abstractmethod
    def sendrecv(self, tensor: Tensor, to: int, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        """Send ``tensor`` to one peer while receiving one of this shape and dtype from another or the same."""

    @abstractmethod
    def exchange_async(
        self, sends: Mapping[int, Tensor], received_bytes: Mapping[int, int], senders: int = 1
    ) -> Handle:
        """Send messages to some peers, in this order, and receive from some, in the background.

        sends: uint8 message for each peer, unchanged until ``wait``. received_bytes: length of each peer's message.
        senders: number of ranks, this one included, that send a message of this size to the same peer at this time.
        Together they are charged for the burst credit of the peer's link. The handle returns the received bytes as one
        uint8 tensor, in the order of ``received_bytes``.
        """

    @abstractmethod
    def barrier(self) -> None:
        """Return when all ranks have called this. Not counted as payload."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections. May be called twice."""

    @abstractmethod
    def _finish_async(self, future: Future[tuple[Tensor, list[Timing]]]) -> Tensor: ...
