"""The collectives that methods may use, and what is counted of them.

A ``Group`` is one rank's view of N ranks. Tensors are contiguous CPU tensors; collectives work along dimension 0,
where ranks may hold different numbers of rows. ``payload_bytes`` count what the method asked to move, without frame
or packet headers.

Blocked time is split in two: ``wait_s`` until the first byte of the operation has come (a peer was still busy, or the
link's latency), ``wire_s`` from then on. For an asynchronous operation only the time blocked in ``Handle.wait`` counts.
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
    """``total`` items over ``world`` ranks, as evenly as whole items allow; the first ranks get one more."""
    share, rest = divmod(total, world)
    return [share + (rank < rest) for rank in range(world)]


@dataclass(frozen=True)
class Timing:
    """Monotonic times of one finished operation: when it began, when its first byte came, when it was done."""

    begin_s: float
    first_s: float
    done_s: float


class Handle:
    """An operation under way. ``wait`` gives its result and books the time that the caller was blocked."""

    def __init__(self, future: Future[tuple[Tensor, list[Timing]]], group: Group):
        self._future, self._group = future, group

    def wait(self) -> Tensor:
        """Block until the operation is done. Raises CommError as the operation itself would."""
        return self._group._finish_async(self._future)


class Group(ABC):
    """N ranks that exchange tensors. Errors are CommError and name the missing or misbehaving ranks."""

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
        """``all_gather`` that goes on while the caller computes. ``local`` must stay unchanged until ``wait``.

        Several may be under way; they go one after another.
        """

    @abstractmethod
    def share_sum_async(self, local: Tensor) -> Handle:
        """Sum over ranks that goes on while the caller computes: each sums its share of dimension 0, then all gather.

        Fewer rounds than ``all_reduce``: for what is small. ``local`` must stay unchanged until ``wait``.
        """

    @abstractmethod
    def all_reduce(self, local: Tensor) -> Tensor:
        """Sum over ranks by a ring, as a new tensor of the same shape; equal on all ranks bit for bit."""

    @abstractmethod
    def reduce_scatter(self, local: Tensor, rows: Sequence[int]) -> Tensor:
        """Sum over ranks of [sum(rows), ...]; this rank gets its own [rows[rank], ...] of it."""

    @abstractmethod
    def all_to_all(self, local: Tensor, rows: Sequence[int], received_rows: Sequence[int]) -> Tensor:
        """Send ``rows[r]`` rows of ``local`` to each rank r; returns what came, [sum(received_rows), ...]."""

    @abstractmethod
    def send(self, tensor: Tensor, peer: int) -> None:
        """Send to one peer; returns when the bytes have been handed to the network."""

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
        """Send messages to some peers, in this order, and receive from some, while the caller computes.

        sends: uint8 message for each peer, unchanged until ``wait``. received_bytes: length of each peer's message.
        senders: ranks, this one included, that send a peer as much at once: what its idle link lets through for free,
        they pay for together.
        The handle gives what came as one uint8 tensor, in the order of ``received_bytes``.
        """

    @abstractmethod
    def barrier(self) -> None:
        """Return when all ranks have come here. Not counted as payload."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections. Safe to call twice."""

    @abstractmethod
    def _finish_async(self, future: Future[tuple[Tensor, list[Timing]]]) -> Tensor: ...
