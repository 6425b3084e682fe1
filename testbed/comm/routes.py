"""What a rank knows of the links between it and the others: how fast they are, and when bytes may be handed to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from testbed.comm.pacing import Pacing
from testbed.comm.schedule import PAIRWISE, Subnets


@dataclass(frozen=True)
class Route:
    """The way of one rank's bytes to a peer, by its slowest link, which is where they queue.

    pacing: of that link. Peers that lie behind the same one share the object, and messages to them go one after
    another. rate_bps: of that link. contending_senders: ranks whose messages cross it in an all-gather, this one
    included.
    """

    pacing: Pacing
    rate_bps: float
    contending_senders: int = 1


@dataclass(frozen=True)
class RankLinks:
    """One rank's routes by peer, how the ranks gather (testbed.comm.schedule), and the ranks of each subnet.

    slowest_bps: the least rate of any rank's routes. Ranks decide by it what goes in rounds, so all have the same.
    """

    routes: Mapping[int, Route]
    slowest_bps: float
    all_gather: str = PAIRWISE
    subnets: Subnets = ()

    @classmethod
    def one(cls, rank: int, world: int, pacing: Pacing, rate_bps: float, algorithm: str = PAIRWISE) -> RankLinks:
        """A single link towards all others."""
        route = Route(pacing, rate_bps)
        return cls({peer: route for peer in range(world) if peer != rank}, rate_bps, algorithm)
