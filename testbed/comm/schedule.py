"""Who sends whose block to whom, and in which order: all-gathers as data.

Ranks carry a schedule out (testbed.comm.tcp), and the cost model counts what each link has to carry in it
(topologies.link_graph), so the two cannot disagree. Whatever the schedule, each rank receives every other rank's block
exactly once: the payload that methods' formulas count is the same, and so is the result, bit for bit.

    pairwise      a stage for each distance: to rank + 1, rank + 2, ... (Thakur, Rabenseifner, Gropp 2005). For a switch
                  with equal links: at any time each link carries one sender's block.
    direct       everything in one stage. For links of their own between each two devices.
    ring          blocks go round by neighbors, both ways, half as many stages as devices; the block of the device
                  opposite comes in halves, one from each side. For direct links between neighbors only.
    hierarchical  a block crosses to another subnet once, to one device there, which hands it on; each of a subnet's
                  devices does so for its share of the blocks. For subnets joined by a slow trunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

Subnets = tuple[tuple[int, ...], ...]

AUTO = "auto"  # as it suits the links: topologies.link_graph
PAIRWISE, DIRECT, RING, HIERARCHICAL = ALL_GATHERS = ("pairwise", "direct", "ring", "hierarchical")
WHOLE, FIRST_HALF, SECOND_HALF = range(3)


@dataclass(frozen=True)
class Transfer:
    """``owner``'s block, or a half of it, on one of its ways: from ``source`` to ``target``."""

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
        """Of the block."""
        return 1.0 if self.part == WHOLE else 0.5


Stage = tuple[Transfer, ...]


@cache
def all_gather(algorithm: str, world: int, subnets: Subnets = ()) -> tuple[Stage, ...]:
    """The stages of an all-gather; a stage needs only what earlier ones have brought.

    subnets: the ranks of each subnet, for ``hierarchical``. In a stage no rank has two transfers to the same peer.
    """
    if algorithm == HIERARCHICAL:
        return tuple(_hierarchical(subnets))
    if algorithm == RING:
        return tuple(_ring(world))
    stages = [tuple(Transfer(rank, (rank + step) % world, rank) for rank in range(world)) for step in range(1, world)]
    return tuple(stages) if algorithm == PAIRWISE else tuple([sum(stages, ())] if stages else [])


@cache
def stages_of(rank: int, algorithm: str, world: int, subnets: Subnets = ()) -> list[tuple[Stage, Stage]]:
    """(what a rank sends, what it receives) in each stage of an all-gather that it takes part in."""
    found = []
    for stage in all_gather(algorithm, world, subnets):
        sent = tuple(transfer for transfer in stage if transfer.source == rank)
        received = tuple(transfer for transfer in stage if transfer.target == rank)
        if sent or received:
            found.append((sent, received))
    return found


def traffic(kind: str, algorithm: str, world: int, subnets: Subnets = ()) -> Sequence[Stage]:
    """The stages of one of the ways in which methods communicate, for the cost model; all blocks are alike.

    gather: an all-gather. pairs: each rank something else for each other, as reduce-scatter and all-to-all do. ring: to
    the right-hand neighbor. both_ways: to both neighbors, until each block has been everywhere. root: pairs, of which
    only those to rank 0, then its block to all. chain: from each rank to the next, one after another.
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
    if world == 2:  # both neighbors are one
        yield to_right(1, WHOLE)
    elif world % 2 == 0:
        yield to_right(world // 2, FIRST_HALF) + to_left(world // 2, SECOND_HALF)


def _hierarchical(subnets: Subnets) -> Iterator[Stage]:
    held: dict[int, list[int]] = {rank: [] for subnet in subnets for rank in subnet}
    first: list[Transfer] = []
    for subnet in subnets:
        for other in subnets:
            for place, rank in enumerate(subnet if other is not subnet else ()):
                receiver = other[place % len(other)]
                first.append(Transfer(rank, receiver, rank))
                held[receiver].append(rank)
    for step in range(1, max(map(len, subnets), default=0)):
        first += [Transfer(rank, mate, rank) for rank, mate in _mates(subnets, step)]
    yield tuple(first)
    for wave in range(max(map(len, held.values()), default=0)):
        for step in range(1, max(map(len, subnets))):
            stage = [
                Transfer(rank, mate, held[rank][wave]) for rank, mate in _mates(subnets, step) if wave < len(held[rank])
            ]
            if stage:
                yield tuple(stage)


def _mates(subnets: Subnets, step: int) -> Iterator[tuple[int, int]]:
    """(rank, the one that is ``step`` further in its subnet), where the subnet is large enough."""
    for subnet in subnets:
        for place, rank in enumerate(subnet if step < len(subnet) else ()):
            yield rank, subnet[(place + step) % len(subnet)]
