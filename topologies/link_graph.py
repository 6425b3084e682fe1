"""How links join devices: the descriptions in conf/topology/, the routes, and the load of each link.

A description is a list of lines ``NODES NODES`` or ``NODES NODES SHARE``. A line links each node on the left with each
node on the right:

    h3    device 3           h*    every device       h1/2  the first half of the devices (h2/3: the second third)
    d0    switch 0           next  right side only: for each device on the left, the next one (cyclic)

SHARE is the link's rate divided by the rate of the experiment. Its default is 1, and the topology's ``trunk_share``
between two switches. A line may also give a share to a link of another line. The order of lines has no effect.

Links may also join two devices directly, and devices then forward packets for others. A message takes the route on
which a bit spends the least time, as in OSPF (RFC 2328): the cost of a link is 1 / SHARE, and fewer links break ties.
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

Hop = tuple[str, str]  # one direction of a link: from one node to another
Load = tuple[int, int, float]  # (source rank, target rank, bytes)

KEY = "topology.links"
_NODES = r"h\*|h\d{1,3}|h[1-9]\d?/[1-9]\d?|d\d{1,3}"
LINE = re.compile(rf"({_NODES}) ({_NODES}|next)(?: (\d*\.?\d+))?")
LINES = "lines as 'h* d0', 'h* next' or 'd0 d1 0.25'; see docs/extending.md"
MOST_DEVICES = 253  # 10.2.0.1 to 10.2.0.253: testbed.network.mininet
LARGEST_SHARE = 1000.0
SHARES = f"a number above 0 up to {LARGEST_SHARE:g}"


@dataclass(frozen=True)
class LinkGraph:
    """Devices h0, h1, ..., switches d0, d1, ..., and their links. A link's share applies to each direction."""

    devices: int
    shares: tuple[tuple[str, str, float], ...]  # (end, end, share) of each link

    @cached_property
    def share(self) -> dict[Hop, float]:
        """The share of every hop. The two directions of a link follow each other."""
        return {hop: share for a, b, share in self.shares for hop in ((a, b), (b, a))}

    @cached_property
    def switches(self) -> list[str]:
        """All switches, by number."""
        return sorted({node for hop in self.share for node in hop if node.startswith("d")}, key=_place)

    @cached_property
    def routes(self) -> dict[tuple[int, int], tuple[Hop, ...]]:
        """The hops from each rank to each other rank that it can reach."""
        return {(rank, peer): hops for rank in range(self.devices) for peer, hops in self._routes_from(rank).items()}

    def slowest(self, rank: int, peer: int) -> Hop:
        """The hop with the lowest rate on the route; of equal ones, the first."""
        return min(self.routes[rank, peer], key=lambda hop: self.share[hop])

    @cached_property
    def contending_senders(self) -> Counter[Hop]:
        """For each hop, the number of ranks whose route to some peer has it as the slowest hop."""
        return Counter(hop for _, hop in {(rank, self.slowest(rank, peer)) for rank, peer in self.routes})

    @cached_property
    def subnets(self) -> Subnets:
        """The ranks at each switch. A rank belongs to its first switch. Empty unless all devices have a switch."""
        at = [next((b for a, b in self.share if a == f"h{r}" and b.startswith("d")), "") for r in range(self.devices)]
        if not all(at):
            return ()
        return tuple(tuple(rank for rank in range(self.devices) if at[rank] == switch) for switch in dict.fromkeys(at))

    @property
    def suited(self) -> str:
        """The all-gather algorithm (testbed.comm.schedule) that suits these links."""
        ranks = range(self.devices)
        linked = {(a, b) for a, b in itertools.permutations(ranks, 2) if (f"h{a}", f"h{b}") in self.share}
        if linked and linked == set(itertools.permutations(ranks, 2)):
            return DIRECT
        if linked and all((rank, (rank + 1) % self.devices) in linked for rank in ranks):
            return RING
        return HIERARCHICAL if len(self.subnets) > 1 else PAIRWISE

    def all_gather(self, requested: str) -> str:
        """The all-gather algorithm for a request. AUTO stands for the one that suits these links."""
        return self.suited if requested == AUTO else requested

    @property
    def is_star(self) -> bool:
        """Whether each device has exactly one link, to the same switch, and all links have share 1; or is alone."""
        return self.devices < 2 or self == star(self.devices)

    def busy_s(self, loads: Iterable[Load], rate_bps: float) -> dict[Hop, float]:
        """Seconds that each hop needs for its load. rate_bps: rate of a link with share 1."""
        seconds: dict[Hop, float] = dict.fromkeys(self.share, 0.0)
        for rank, peer, size in loads:
            for hop in self.routes[rank, peer]:
                seconds[hop] += 8 * size / (self.share[hop] * rate_bps)
        return seconds

    def stages_s(self, stages: Iterable[Sequence[Load]], rate_bps: float) -> float:
        """Seconds for stages one after another. Each stage takes as long as its busiest hop."""
        return sum(max(self.busy_s(stage, rate_bps).values(), default=0.0) for stage in stages)

    def gather_loads(self, algorithm: str, size: float) -> list[list[Load]]:
        """The loads of each stage of an all-gather of ``size`` bytes from each rank."""
        stages = all_gather(algorithm, self.devices, self.subnets)
        return [[(t.source, t.target, t.share * size) for t in stage] for stage in stages]

    def relative_rate(self, kinds: tuple[str, ...], algorithm: str) -> float:
        """Rate at which a method's bits arrive, relative to a star of equal links.

        kinds: the method's communication patterns (testbed.comm.schedule.traffic), each for an equal part of its bits.
        A cost model divides received bits by a rate: by the links' rate on a star of equal links, and by this factor
        times that rate on other topologies. Each stage takes as long as its busiest hop.
        """
        if self.devices < 2:
            return 1.0
        return len(kinds) / sum(1 / self._relative_rate(kind, algorithm) for kind in kinds)

    def _relative_rate(self, kind: str, algorithm: str) -> float:
        def seconds(graph: LinkGraph, algorithm: str) -> float:
            stages = traffic(kind, algorithm, graph.devices, graph.subnets)
            return graph.stages_s([[(t.source, t.target, t.share) for t in stage] for stage in stages], 8.0)

        return seconds(star(self.devices), PAIRWISE) / seconds(self, algorithm)

    @cached_property
    def _around(self) -> dict[str, list[tuple[str, float]]]:
        """For each node, its neighbors and the shares of the links to them."""
        found: dict[str, list[tuple[str, float]]] = {f"h{rank}": [] for rank in range(self.devices)}
        for (a, b), share in self.share.items():
            found.setdefault(a, []).append((b, share))
        return found

    def _routes_from(self, rank: int) -> dict[int, tuple[Hop, ...]]:
        """The best route to every other rank (Dijkstra 1959). Of equal ones, the one through the next ranks."""
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
                    route = (*hops, (node, following))
                    heapq.heappush(queue, (cost + 1 / share, count + 1, (*places, ahead), route, following))
        return {int(node[1:]): hops for node, hops in found.items() if node.startswith("h") and hops}


@cache
def star(devices: int) -> LinkGraph:
    """Every device has one link, to the same switch."""
    return link_graph(("h* d0",), 1.0, devices)


@cache
def link_graph(lines: tuple[str, ...], trunk_share: float, devices: int) -> LinkGraph:
    """The link graph of a description's lines for this number of devices.

    ConfigError (key topology.links) for a line that cannot be parsed, for a device that does not exist, for devices
    without a route, and for switches in a cycle (in which bridges would forward packets forever).
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
    """Whether this share is allowed."""
    return 0 < value <= LARGEST_SHARE


def _pairs(line: str, left: str, right: str, devices: int) -> Iterable[Hop]:
    """(end, end) of each link of a line, devices before switches."""
    if right == "next":
        if left.startswith("d"):
            raise ConfigError(KEY, line, "must have devices before 'next'")
        pairs = [(a, f"h{(int(a[1:]) + 1) % devices}") for a in _nodes(line, left, devices)]
    else:
        pairs = list(itertools.product(_nodes(line, left, devices), _nodes(line, right, devices)))
    return [(a, b) if _place(a) < _place(b) else (b, a) for a, b in pairs if a != b]


def _place(node: str) -> tuple[bool, int]:
    """Sort key: devices before switches, then by number. It makes the order of lines and words irrelevant."""
    return node.startswith("d"), int(node[1:])


def _nodes(line: str, word: str, devices: int) -> list[str]:
    """The nodes that a word of a line names."""
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
    """ConfigError unless every device reaches every other one and the switches form no cycle (union-find)."""
    parent = {node: node for node in [*(f"h{rank}" for rank in range(graph.devices)), *graph.switches]}

    def root(node: str) -> str:
        while parent[node] != node:
            node = parent[node]
        return node

    for a, b, _ in sorted(graph.shares, key=lambda link: link[0].startswith("h") or link[1].startswith("h")):
        if a in graph.switches and b in graph.switches and root(a) == root(b):
            raise ConfigError(KEY, lines, f"must not link switches in a cycle: the link {a} {b} closes one")
        parent[root(a)] = root(b)
    for rank in range(1, graph.devices):
        if root(f"h{rank}") != root("h0"):
            raise ConfigError(KEY, lines, f"must join all devices: h0 cannot reach h{rank}")
