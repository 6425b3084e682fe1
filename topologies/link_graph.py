"""How devices are linked: what conf/topology/ describes, the ways through it, and what each link has to carry.

A description is a list of lines ``NODES NODES`` or ``NODES NODES SHARE``. A line links each node on the left with each
on the right:

    h3    device 3           h*    every device       h1/2  the first half of the devices (h2/3: the second third)
    d0    switch 0           next  on the right: of each device on the left the one after it, round

SHARE is the link's rate over the rate that an experiment asks for; left out it is 1, between two switches the
topology's ``trunk_share``. It may also be given to a link that another line makes. The order of lines means nothing.

Two devices without a switch between them have a link of their own, and devices forward for others. A message takes the
way on which a bit spends the least time, as OSPF chooses it (RFC 2328; cost: 1 / SHARE of each link, then fewer links).
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from testbed.comm.schedule import AUTO, DIRECT, HIERARCHICAL, PAIRWISE, RING, Subnets, all_gather, traffic
from testbed.errors import ConfigError

Hop = tuple[str, str]  # one direction of a link: from a node to another
Load = tuple[int, int, float]  # from a rank to another so many bytes

KEY = "topology.links"
_NODES = r"h\*|h\d{1,3}|h[1-9]\d?/[1-9]\d?|d\d{1,3}"
LINE = re.compile(rf"({_NODES}) ({_NODES}|next)(?: (\d*\.?\d+))?")
LINES = "lines as 'h* d0', 'h* next' or 'd0 d1 0.25'; see docs/extending.md"
MOST_DEVICES = 253  # 10.2.0.1 to 10.2.0.253: testbed.network.mininet
LARGEST_SHARE = 1000.0
SHARES = f"a number above 0 up to {LARGEST_SHARE:g}"


@dataclass(frozen=True)
class LinkGraph:
    """``devices`` devices h0, h1, ... and switches d0, d1, ... with the share of each link's two directions."""

    devices: int
    shares: tuple[tuple[str, str, float], ...]  # a link's ends and its share

    @cached_property
    def share(self) -> dict[Hop, float]:
        """Of every hop; the two directions of a link one after the other."""
        return {hop: share for a, b, share in self.shares for hop in ((a, b), (b, a))}

    @cached_property
    def switches(self) -> list[str]:
        """All of them, in order."""
        return sorted({node for hop in self.share for node in hop if node.startswith("d")}, key=_place)

    @cached_property
    def routes(self) -> dict[tuple[int, int], tuple[Hop, ...]]:
        """The hops from each rank to each other that it can reach."""
        return {(rank, peer): hops for rank in range(self.devices) for peer, hops in self._routes_from(rank).items()}

    def slowest(self, rank: int, peer: int) -> Hop:
        """The hop with the least rate on the way; of equals the first."""
        return min(self.routes[rank, peer], key=lambda hop: self.share[hop])

    @cached_property
    def contending_senders(self) -> Counter[Hop]:
        """How many ranks have a hop as the slowest on their way to some peer."""
        return Counter(hop for _, hop in {(rank, self.slowest(rank, peer)) for rank, peer in self.routes})

    @cached_property
    def subnets(self) -> Subnets:
        """The ranks behind each switch, each rank behind its first one; none unless all devices have a switch."""
        at = [next((b for a, b in self.share if a == f"h{r}" and b.startswith("d")), "") for r in range(self.devices)]
        if not all(at):
            return ()
        return tuple(tuple(rank for rank in range(self.devices) if at[rank] == switch) for switch in dict.fromkeys(at))

    @property
    def suited(self) -> str:
        """The way to gather (testbed.comm.schedule) that these links are made for."""
        ranks = range(self.devices)
        linked = {(a, b) for a, b in itertools.permutations(ranks, 2) if (f"h{a}", f"h{b}") in self.share}
        if linked and linked == set(itertools.permutations(ranks, 2)):
            return DIRECT
        if linked and all((rank, (rank + 1) % self.devices) in linked for rank in ranks):
            return RING
        return HIERARCHICAL if len(self.subnets) > 1 else PAIRWISE

    def all_gather(self, asked: str) -> str:
        """The way to gather that ``asked`` stands for: itself, or with AUTO the one that suits these links."""
        return self.suited if asked == AUTO else asked

    @property
    def is_star(self) -> bool:
        """Whether each device has one link, to one switch, and all are alike."""
        return self == star(self.devices)

    def busy_s(self, loads: Iterable[Load], rate_bps: float) -> dict[Hop, float]:
        """Seconds that each hop needs for what goes over it; rate_bps: of a link whose share is 1."""
        seconds: dict[Hop, float] = dict.fromkeys(self.share, 0.0)
        for rank, peer, size in loads:
            for hop in self.routes[rank, peer]:
                seconds[hop] += 8 * size / (self.share[hop] * rate_bps)
        return seconds

    def stages_s(self, stages: Iterable[Sequence[Load]], rate_bps: float) -> float:
        """Seconds of stages one after another, each as long as its busiest hop needs."""
        return sum(max(self.busy_s(stage, rate_bps).values(), default=0.0) for stage in stages)

    def gather_loads(self, algorithm: str, size: float) -> list[list[Load]]:
        """The stages of an all-gather of ``size`` bytes from each rank."""
        stages = all_gather(algorithm, self.devices, self.subnets)
        return [[(t.source, t.target, t.share * size) for t in stage] for stage in stages]

    def relative_rate(self, kinds: tuple[str, ...], algorithm: str) -> float:
        """How many times faster than on a star methods' bits arrive, by the busiest hop of each stage.

        kinds: how a method communicates (testbed.comm.schedule.traffic), each for an equal part of its bits. Cost
        models divide received bits by a rate; on a star of equal links by that of the links, elsewhere by this times
        as much.
        """
        if self.devices < 2:
            return 1.0
        return len(kinds) / sum(1 / self._relative_rate(kind, algorithm) for kind in kinds)

    def _relative_rate(self, kind: str, algorithm: str) -> float:
        def seconds(graph: LinkGraph, way: str) -> float:
            stages = traffic(kind, way, graph.devices, graph.subnets)
            return graph.stages_s([[(t.source, t.target, t.share) for t in stage] for stage in stages], 8.0)

        return seconds(star(self.devices), PAIRWISE) / seconds(self, algorithm)

    @cached_property
    def _around(self) -> dict[str, list[tuple[str, float]]]:
        """The nodes that each node has a link to, with the link's share."""
        found: dict[str, list[tuple[str, float]]] = {f"h{rank}": [] for rank in range(self.devices)}
        for (a, b), share in self.share.items():
            found.setdefault(a, []).append((b, share))
        return found

    def _routes_from(self, rank: int) -> dict[int, tuple[Hop, ...]]:
        """The best way to every other rank (Dijkstra 1959); of equals the one that goes ahead round the ranks."""
        found: dict[str, tuple[Hop, ...]] = {}
        queue: list[tuple[float, int, tuple[int, ...], tuple[Hop, ...], str]] = [(0.0, 0, (), (), f"h{rank}")]
        while queue:
            cost, count, places, hops, node = heapq.heappop(queue)
            if node in found:
                continue
            found[node] = hops
            for following, share in self._around[node]:
                if following not in found:
                    ahead = (int(following[1:]) - rank) % self.devices if following.startswith("h") else self.devices
                    way = (*hops, (node, following))
                    heapq.heappush(queue, (cost + 1 / share, count + 1, (*places, ahead), way, following))
        return {int(node[1:]): hops for node, hops in found.items() if node.startswith("h") and hops}


@cache
def star(devices: int) -> LinkGraph:
    """Every device with a link of its own to one switch."""
    return link_graph(("h* d0",), 1.0, devices)


@cache
def link_graph(lines: tuple[str, ...], trunk_share: float, devices: int) -> LinkGraph:
    """The links that a description's lines make of so many devices.

    ConfigError (key topology.links): a line that cannot be read or names a device that is not there, devices that no
    way joins, switches in a circle (bridges would send each packet round for ever).
    """
    shares: dict[Hop, float] = {}
    given_by: dict[Hop, float] = {}
    for line in lines:
        found = LINE.fullmatch(line)
        if found is None:
            raise ConfigError(KEY, line, f"must be {LINES}")
        left, right, given = found.groups()
        for a, b in _pairs(line, left, right, devices):
            shares.setdefault((a, b), trunk_share if a.startswith("d") else 1.0)
            if given and (not is_share(float(given)) or given_by.setdefault((a, b), float(given)) != float(given)):
                raise ConfigError(KEY, line, f"must end with {SHARES}, the same wherever {a} {b} has one")
    shares |= given_by
    in_order = sorted(shares, key=lambda ends: tuple(map(_place, ends)))
    graph = LinkGraph(devices, tuple((a, b, shares[a, b]) for a, b in in_order))
    _check(graph, ", ".join(lines))
    return graph


def is_share(value: float) -> bool:
    """Whether a link can have this share."""
    return 0 < value <= LARGEST_SHARE


def _pairs(line: str, left: str, right: str, devices: int) -> Iterable[Hop]:
    """The ends of each link of a line, in order."""
    if right == "next":
        if left.startswith("d"):
            raise ConfigError(KEY, line, "must have devices before 'next'")
        pairs = [(a, f"h{(int(a[1:]) + 1) % devices}") for a in _nodes(line, left, devices)]
    else:
        pairs = list(itertools.product(_nodes(line, left, devices), _nodes(line, right, devices)))
    return [(a, b) if _place(a) < _place(b) else (b, a) for a, b in pairs if a != b]


def _place(node: str) -> tuple[bool, int]:
    """Devices before switches, by number: the order of lines and of words in them means nothing."""
    return node.startswith("d"), int(node[1:])


def _nodes(line: str, word: str, devices: int) -> list[str]:
    """The nodes that a word stands for."""
    if word.startswith("d"):
        return [f"d{int(word[1:])}"]
    ranks = list(range(devices))
    if "/" in word:
        part, parts = map(int, word[1:].split("/"))
        if part > parts:
            raise ConfigError(KEY, line, f"must have parts from h1/{parts} to h{parts}/{parts}")
        ranks = [rank for rank in ranks if rank * parts // devices == part - 1]
    elif word != "h*":
        ranks = [int(word[1:])]
        if ranks[0] >= devices:
            last = f"h{devices - 1}"
            raise ConfigError(KEY, line, f"must name devices from h0 to {last}: there are {devices}")
    return [f"h{rank}" for rank in ranks]


def _check(graph: LinkGraph, lines: str) -> None:
    """ConfigError unless every device reaches every other one and switches form no circle."""
    above = {node: node for node in [*(f"h{rank}" for rank in range(graph.devices)), *graph.switches]}

    def top(node: str) -> str:
        while above[node] != node:
            node = above[node]
        return node

    for a, b, _ in sorted(graph.shares, key=lambda link: link[0].startswith("h") or link[1].startswith("h")):
        if a in graph.switches and b in graph.switches and top(a) == top(b):
            raise ConfigError(KEY, lines, f"must not link switches in a circle: {a} and {b} close one")
        above[top(a)] = top(b)
    for rank in range(1, graph.devices):
        if top(f"h{rank}") != top("h0"):
            raise ConfigError(KEY, lines, f"must join all devices: h0 cannot reach h{rank}")
