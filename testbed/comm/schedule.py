"""All-gather schedules as data: who sends whose block to whom, and in which order.

The ranks execute a schedule (testbed.comm.tcp), and the cost model counts the load of each link from the same schedule
(topologies.link_graph), so the two cannot disagree. In every schedule, each rank receives every other rank's block
exactly once. The payload that the methods' formulas count is therefore the same, and the result is the same bit for
bit.

    pairwise      One stage for each distance: to rank + 1, rank + 2, ... (Thakur, Rabenseifner, Gropp 2005). For a
                  switch with equal links: at any time, each link carries one sender's block.
    direct        All transfers in one stage. For a full mesh of links.
    ring          Blocks travel around the ring in both directions, in half as many stages as devices. With an even
                  number of devices, the opposite device's block arrives in two halves, one from each side. For links
                  between neighbors only.
    hierarchical  Each block enters another subnet once, at one device, which forwards it to the others there. The
                  devices of a subnet share this work. For subnets joined by a slow trunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

Subnets = tuple[tuple[int, ...], ...]

AUTO = "auto"  # the algorithm that suits the links: topologies.link_graph
PAIRWISE, DIRECT, RING, HIERARCHICAL = ALL_GATHERS = ("pairwise", "direct", "ring", "hierarchical")
WHOLE, FIRST_HALF, SECOND_HALF = range(3)


@dataclass(frozen=True)
class Transfer:
    """One transfer of ``owner``'s block, or of a half of it, from ``source`` to ``target``."""

    source: int
    target: int
    owner: int
    part: int = WHOLE

    def cut(self, block: memoryview) -> memoryview:
        """The bytes of the block that this transfer moves."""
        middle = len(block) // 2
        return block if self.part == WHOLE else block[:middle] if self.part == FIRST_HALF else block[middle:]

    @property
    def share(self) -> float:
        """Share of the block that this transfer moves."""
        return 1.0 if self.part == WHOLE else 0.5


Stage = tuple[Transfer, ...]


@cache
def all_gather(algorithm: str, world: int, subnets: Subnets = ()) -> tuple[Stage, ...]:
    """The stages of an all-gather. A stage sends only blocks that its senders have from earlier stages.

    subnets: the ranks of each subnet, for ``hierarchical``. In a stage, no rank has two transfers to the same peer.
    """
    if algorithm == HIERARCHICAL:
        return tuple(_hierarchical(subnets))
    if algorithm == RING:
        return tuple(_ring(world))
    stages = [tuple(Transfer(rank, (rank + step) % world, rank) for rank in range(world)) for step in range(1, world)]
    return tuple(stages) if algorithm == PAIRWISE else tuple([sum(stages, ())] if stages else [])


@cache
def stages_of(rank: int, algorithm: str, world: int, subnets: Subnets = ()) -> list[tuple[Stage, Stage]]:
    """(transfers that a rank sends, transfers that it receives) for each stage in which it takes part."""
    found = []
    for stage in all_gather(algorithm, world, subnets):
        sent = tuple(transfer for transfer in stage if transfer.source == rank)
        received = tuple(transfer for transfer in stage if transfer.target == rank)
        if sent or received:
            found.append((sent, received))
    return found


def traffic(kind: str, algorithm: str, world: int, subnets: Subnets = ()) -> Sequence[Stage]:
    """The stages of one communication pattern of methods, for the cost model. All blocks have the same size.

    gather     an all-gather
    pairs      a different message from each rank to each other rank, as in reduce-scatter and all-to-all
    ring       to the right neighbor
    both_ways  to both neighbors, until every rank has every block
    root       a message from each rank to rank 0, then rank 0's block to all
    chain      from each rank to the next, one after another
    """
    ranks = range(world)
    if kind == "gather":
        return all_gather(algorithm, world, subnets)
    if kind == "pairs":
        return all_gather(DIRECT if algorithm == DIRECT else PAIRWISE, world)
    if kind == "chain":
        return [(Transfer(rank, rank + 1, rank),) for rank in ranks[:-1]]
    if kind == "root":
        terms = [tuple(t for t in stage if t.target == 0) for stage in traffic("pairs", algorithm, world)]
        return [*terms, *(tuple(t for t in stage if t.owner == 0) for stage in all_gather(algorithm, world, subnets))]
    right = tuple(Transfer(rank, (rank + 1) % world, rank) for rank in ranks)
    if kind == "ring":
        return [right]
    left = tuple(Transfer(rank, (rank - 1) % world, rank) for rank in ranks)
    both = (world - 1) // 2
    return [right + left] * both + [right] * (world - 1 - 2 * both)


def _ring(world: int) -> Iterator[Stage]:
    ranks, both = range(world), (world - 1) // 2

    def to_right(step: int, part: int) -> Stage:
        return tuple(Transfer(rank, (rank + 1) % world, (rank - step + 1) % world, part) for rank in ranks)

    def to_left(step: int, part: int) -> Stage:
        return tuple(Transfer(rank, (rank - 1) % world, (rank + step - 1) % world, part) for rank in ranks)

    for step in range(1, both + 1):
        yield to_right(step, WHOLE) + to_left(step, WHOLE)
    if world == 2:  # both neighbors are the same rank
        yield to_right(1, WHOLE)
    elif world % 2 == 0:
        yield to_right(world // 2, FIRST_HALF) + to_left(world // 2, SECOND_HALF)


def _hierarchical(subnets: Subnets) -> Iterator[Stage]:
    received: dict[int, list[int]] = {rank: [] for subnet in subnets for rank in subnet}
    first: list[Transfer] = []
    for subnet in subnets:
        for other in subnets:
            for place, rank in enumerate(subnet if other is not subnet else ()):
                receiver = other[place % len(other)]
                first.append(Transfer(rank, receiver, rank))
                received[receiver].append(rank)
    for step in range(1, max(map(len, subnets), default=0)):
        first += [Transfer(rank, peer, rank) for rank, peer in _subnet_peers(subnets, step)]
    yield tuple(first)
    for wave in range(max(map(len, received.values()), default=0)):
        for step in range(1, max(map(len, subnets))):
            stage = [
                Transfer(rank, peer, received[rank][wave])
                for rank, peer in _subnet_peers(subnets, step)
                if wave < len(received[rank])
            ]
            if stage:
                yield tuple(stage)


def _subnet_peers(subnets: Subnets, step: int) -> Iterator[tuple[int, int]]:
    """(rank, the rank ``step`` places further in its subnet), for every subnet of more than ``step`` ranks."""
    for subnet in subnets:
        for place, rank in enumerate(subnet if step < len(subnet) else ()):
            yield rank, subnet[(place + step) % len(subnet)]
