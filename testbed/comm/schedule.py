"""Who sends whose block to whom, and in which order: all-gathers as data.

Ranks carry a schedule out (testbed.comm.tcp), and the cost model counts what each link has to carry in it
(topologies.link_graph), so the two cannot disagree. Whatever the schedule, each rank receives every other rank's block
exactly once: the payload that methods' formulas count is the same, and so is the result, bit for bit.

    pairwise      a stage for each distance: to rank + 1, rank + 2, ... (Thakur, Rabenseifner, Gropp 2005). For a switch
                  with equal links: at any time each link carries one sender's block.
    at_once       everything in one stage. For links of their own between each two devices.
    ring          blocks go round by neighbours, both ways, half as many stages as devices; the block of the device
                  opposite comes in halves, one from each side. For direct links between neighbours only.
    hierarchical  a block crosses to another room once, to one device there, which hands it on; each of a room's
                  devices does so for its share of the blocks. For rooms joined by a slow trunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

Rooms = tuple[tuple[int, ...], ...]

AUTO = "auto"  # as it suits the links: topologies.link_graph
PAIRWISE, AT_ONCE, RING, HIERARCHICAL = COLLECTIVES = ("pairwise", "at_once", "ring", "hierarchical")
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
def all_gather(collective: str, world: int, rooms: Rooms = ()) -> tuple[Stage, ...]:
    """The stages of an all-gather; a stage needs only what earlier ones have brought.

    rooms: the ranks of each room, for ``hierarchical``. In a stage no rank has two transfers to the same peer.
    """
    if collective == HIERARCHICAL:
        return tuple(_hierarchical(rooms))
    if collective == RING:
        return tuple(_ring(world))
    stages = [tuple(Transfer(rank, (rank + step) % world, rank) for rank in range(world)) for step in range(1, world)]
    return tuple(stages) if collective == PAIRWISE else tuple([sum(stages, ())] if stages else [])


@cache
def stages_of(rank: int, collective: str, world: int, rooms: Rooms = ()) -> list[tuple[Stage, Stage]]:
    """(what a rank sends, what it receives) in each stage of an all-gather that it takes part in."""
    found = []
    for stage in all_gather(collective, world, rooms):
        sent = tuple(transfer for transfer in stage if transfer.source == rank)
        received = tuple(transfer for transfer in stage if transfer.target == rank)
        if sent or received:
            found.append((sent, received))
    return found


def traffic(kind: str, collective: str, world: int, rooms: Rooms = ()) -> Sequence[Stage]:
    """The stages of one of the ways in which methods communicate, for the cost model; all blocks are alike.

    gather: an all-gather. pairs: each rank something else for each other, as reduce-scatter and all-to-all do. ring: to
    the right-hand neighbour. both_ways: to both neighbours, until each block has been everywhere. root: pairs, of which
    only those to rank 0, then its block to all. chain: from each rank to the next, one after another.
    """
    ranks = range(world)
    if kind == "gather":
        return all_gather(collective, world, rooms)
    if kind == "pairs":
        return all_gather(AT_ONCE if collective == AT_ONCE else PAIRWISE, world)
    if kind == "chain":
        return [(Transfer(rank, rank + 1, rank),) for rank in ranks[:-1]]
    if kind == "root":
        terms = [tuple(t for t in stage if t.target == 0) for stage in traffic("pairs", collective, world)]
        return [*terms, *(tuple(t for t in stage if t.owner == 0) for stage in all_gather(collective, world, rooms))]
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
    if world == 2:  # both neighbours are one
        yield to_right(1, WHOLE)
    elif world % 2 == 0:
        yield to_right(world // 2, FIRST_HALF) + to_left(world // 2, SECOND_HALF)


def _hierarchical(rooms: Rooms) -> Iterator[Stage]:
    held: dict[int, list[int]] = {rank: [] for room in rooms for rank in room}
    first: list[Transfer] = []
    for room in rooms:
        for other in rooms:
            for place, rank in enumerate(room if other is not room else ()):
                receiver = other[place % len(other)]
                first.append(Transfer(rank, receiver, rank))
                held[receiver].append(rank)
    for step in range(1, max(map(len, rooms), default=0)):
        first += [Transfer(rank, mate, rank) for rank, mate in _mates(rooms, step)]
    yield tuple(first)
    for wave in range(max(map(len, held.values()), default=0)):
        for step in range(1, max(map(len, rooms))):
            stage = [
                Transfer(rank, mate, held[rank][wave]) for rank, mate in _mates(rooms, step) if wave < len(held[rank])
            ]
            if stage:
                yield tuple(stage)


def _mates(rooms: Rooms, step: int) -> Iterator[tuple[int, int]]:
    """(rank, the one that is ``step`` further in its room), where the room is large enough."""
    for room in rooms:
        for place, rank in enumerate(room if step < len(room) else ()):
            yield rank, room[(place + step) % len(room)]
