"""What a rank knows of the links to its peers: how fast they are, and when they may get bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from testbed.comm.pacing import Pacing
from testbed.comm.schedule import PAIRWISE, Subnets


@dataclass(frozen=True)
class Route:
    """The route from one rank to a peer, described by its slowest link, where bytes queue.

    pacing: of that link. Peers behind the same link share the object, and messages to them go one after another.
    rate_bps: of that link. contending_senders: ranks whose messages cross it in an all-gather, this one included.
    """

    pacing: Pacing
    rate_bps: float
    contending_senders: int = 1


@dataclass(frozen=True)
class RankLinks:
    """One rank's routes by peer, the all-gather algorithm (testbed.comm.schedule), and the ranks of each subnet.

    slowest_bps: the lowest rate of all routes of all ranks. It decides which messages go in rounds, so all ranks must
    have the same value.
    """

    routes: Mapping[int, Route]
    slowest_bps: float
    all_gather: str = PAIRWISE
    subnets: Subnets = ()

    @classmethod
    def one(cls, rank: int, world: int, pacing: Pacing, rate_bps: float, algorithm: str = PAIRWISE) -> RankLinks:
        """Routes that all share this rank's only link."""
        route = Route(pacing, rate_bps)
        return cls({peer: route for peer in range(world) if peer != rank}, rate_bps, algorithm)
