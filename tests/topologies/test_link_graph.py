"""Descriptions of links: the links, the routes, the load of each link, and the descriptions that are refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from testbed.comm.schedule import DIRECT, HIERARCHICAL, PAIRWISE, RING
from testbed.config.fields import CONF, choices
from testbed.errors import ConfigError
from topologies.link_graph import LinkGraph, link_graph, star
from topologies.mininet_topo import LinkGraphTopo

TRUNK = 0.25


def graph(name: str, devices: int) -> LinkGraph:
    """As conf/topology/ describes it."""
    described = OmegaConf.load(CONF / "topology" / f"{name}.yaml")
    return link_graph(tuple(described.links), described.trunk_share, devices)


@pytest.mark.parametrize("devices", range(1, 10))
@pytest.mark.parametrize("name", choices("topology"))
def test_every_topology_joins_any_number_of_devices(name: str, devices: int) -> None:
    links = graph(name, devices)
    assert set(links.routes) == set(itertools.permutations(range(devices), 2))
    for (rank, peer), hops in links.routes.items():
        assert hops[0][0] == f"h{rank}" and hops[-1][1] == f"h{peer}"
        assert all(here[1] == following[0] for here, following in itertools.pairwise(hops))


@pytest.mark.parametrize(
    ("name", "devices", "count", "route", "algorithm"),
    [
        ("star", 4, 4, "h0 d0 h2", PAIRWISE),
        ("ring", 5, 5, "h0 h1 h2", RING),
        ("ring", 4, 4, "h0 h1 h2", RING),  # of two equal routes, the one through higher ranks
        ("ring", 3, 3, "h0 h2", DIRECT),
        ("mesh", 5, 10, "h0 h2", DIRECT),
        ("two_tier", 4, 5, "h0 d0 d1 h2", HIERARCHICAL),
        ("two_tier", 5, 6, "h0 d0 h2", HIERARCHICAL),  # three devices in the first subnet
    ],
)
def test_properties_of_the_topologies(name: str, devices: int, count: int, route: str, algorithm: str) -> None:
    links = graph(name, devices)
    assert len(links.shares) == count
    assert links.routes[0, 2] == tuple(itertools.pairwise(route.split()))
    assert links.suited == algorithm
    assert links.is_star == (name == "star")


def test_a_user_description() -> None:
    links = link_graph(("h* d0", "h3 d0 0.1", "h0 h1 2", "d0 d7", "h0 d7"), TRUNK, 4)
    assert links.share["d0", "h3"] == 0.1 and links.share["d7", "d0"] == TRUNK
    assert links.routes[0, 1] == (("h0", "h1"),)
    assert links.slowest(0, 3) == ("d0", "h3") and links.slowest(3, 0) == ("h3", "d0")
    assert links.contending_senders["d0", "h3"] == 3 and links.contending_senders["h3", "d0"] == 1
    assert links.subnets == ((0, 1, 2, 3),)


def test_the_trunk_is_shared_by_the_devices_of_a_subnet() -> None:
    links = graph("two_tier", 5)
    assert links.subnets == ((0, 1, 2), (3, 4))
    assert (links.contending_senders["d0", "d1"], links.contending_senders["d1", "d0"]) == (3, 2)
    assert links.slowest(0, 4) == ("d0", "d1") and links.slowest(0, 1) == ("h0", "d0")


@pytest.mark.parametrize(
    ("name", "algorithm", "seconds"),
    [
        ("star", PAIRWISE, 3),
        ("ring", RING, 1.5),  # three blocks, half of them from each side
        ("ring", PAIRWISE, 4),  # blocks for the opposite device go by a neighbor: rounds of 1, 2 and 1
        ("mesh", DIRECT, 1),
        ("two_tier", HIERARCHICAL, 2 / TRUNK + 1),  # two blocks over the trunk, then one is handed on
        ("two_tier", PAIRWISE, 4 / TRUNK),  # each of two blocks crosses twice: rounds of 1, 2 and 1
    ],
)
def test_an_all_gather_takes_the_time_of_its_busiest_links(name: str, algorithm: str, seconds: float) -> None:
    links = graph(name, 4)
    assert links.stages_s(links.gather_loads(algorithm, 1000), 8000) == pytest.approx(seconds)
    assert links.relative_rate(("gather",), algorithm) == pytest.approx(3 / seconds)


@pytest.mark.parametrize(
    ("name", "kind", "rate"),
    [
        ("ring", "ring", 1),
        ("ring", "both_ways", 1.5),  # three blocks one after another on a star; two stages on links of their own
        ("ring", "chain", 1),
        ("mesh", "pairs", 3),
        ("mesh", "root", 3),
        ("two_tier", "ring", TRUNK),
        ("two_tier", "chain", 3 / (2 + 1 / TRUNK)),
        ("two_tier", "root", 6 / (3 / TRUNK + 2)),  # two terms cross, and one sum
    ],
)
def test_relative_rates_of_other_patterns(name: str, kind: str, rate: float) -> None:
    links = graph(name, 4)
    assert links.relative_rate((kind,), links.suited) == pytest.approx(rate)
    assert star(4).relative_rate((kind,), PAIRWISE) == pytest.approx(1)
    both = links.relative_rate(("gather", kind), links.suited)
    assert 1 / both == pytest.approx((1 / rate + 1 / links.relative_rate(("gather",), links.suited)) / 2)


@st.composite
def graphs(draw: st.DrawFn) -> LinkGraph:
    """Any tree of links between devices and a switch, and some more links."""
    devices = draw(st.integers(2, 6))
    shares = st.sampled_from([0.1, 0.5, 1.0, 3.0])
    lines = [f"h0 d0 {draw(shares)}"]
    for rank in range(1, devices):
        other = draw(st.sampled_from(["d0", *(f"h{before}" for before in range(rank))]))
        lines.append(f"h{rank} {other} {draw(shares)}")
    for a, b in draw(st.lists(st.permutations(range(devices)).map(lambda ranks: ranks[:2]), max_size=3)):
        lines.append(f"h{a} h{b}")
    return link_graph(tuple(lines), 1.0, devices)


@given(st.permutations(["h* d0", "h3 d0 0.1", "h0 h1 2", "d0 d7", "d7 h0", "h0 d0"]))
def test_the_order_of_lines_has_no_effect(lines: list[str]) -> None:
    assert link_graph(tuple(lines), TRUNK, 4) == link_graph(
        ("h* d0", "h3 d0 .1", "h1 h0 2.0", "d0 d7", "h0 d7"), TRUNK, 4
    )


@given(graphs())
def test_no_detour_is_faster_than_a_route(links: LinkGraph) -> None:
    def cost(rank: int, peer: int) -> float:
        return sum(1 / links.share[hop] for hop in links.routes[rank, peer])

    for rank, peer in links.routes:
        direct = links.share.get((f"h{rank}", f"h{peer}"))
        assert direct is None or cost(rank, peer) <= 1 / direct
        for via in set(range(links.devices)) - {rank, peer}:
            assert cost(rank, peer) <= cost(rank, via) + cost(via, peer) + 1e-9


@given(graphs(), st.sampled_from([PAIRWISE, DIRECT, RING]))
def test_stages_take_at_least_as_long_as_all_bytes_on_any_link(links: LinkGraph, algorithm: str) -> None:
    stages = links.gather_loads(algorithm, 1.0)
    busy_s = links.busy_s([load for stage in stages for load in stage], 8.0)
    assert max(busy_s.values()) <= links.stages_s(stages, 8.0) + 1e-9
    into = sum(seconds * links.share[hop] for hop, seconds in busy_s.items() if hop[1] == "h0")
    assert into >= links.devices - 1 - 1e-9  # what others sent to h0, and what it forwards


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["h* d0", "h9 d0"], "topology.links=h9 d0: must name devices from h0 to h3"),
        (["h0 d0"], "must join all devices: h0 cannot reach h1"),
        (["h* d0", "d0 d1", "d1 d2", "d2 d0"], "must not link switches in a cycle"),
        (["d0 next"], "must have devices before 'next'"),
        (["h3/2 d0"], "must have parts from h1/2 to h2/2"),
        (["h* d0 0"], "must end with a number above 0"),
        (["h* d0 0.5", "d0 h2 0.25"], "topology.links=d0 h2 0.25: must end with a number above 0 up to 1000, the same"),
        (["h* d0 2000"], "must end with a number above 0 up to 1000"),
        (["h*"], "must be lines as"),
        (["h* x0"], "must be lines as"),
        (["h* d0 -1"], "must be lines as"),
    ],
)
def test_invalid_descriptions_are_refused(lines: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        link_graph(tuple(lines), 1.0, 4)
    assert message in str(error.value)


def test_each_end_of_a_link_has_its_own_interface_and_address() -> None:
    links = graph("two_tier", 3)
    topo = LinkGraphTopo(graph=links, private_dirs=["/x"])
    made = [info for _, _, info in topo.links(withInfo=True)]  # pyright: ignore
    names = {info[key] for info in made for key in ("intfName1", "intfName2")}
    control = {"ctl-control", "c0-ctl"} | {name for r in range(3) for name in (f"h{r}-control", f"c0-h{r}")}
    assert names == control | {"-".join(hop) for hop in links.share}
    addresses = [info[key] for info in made for key in ("addr1", "addr2") if key in info]
    assert len(set(addresses)) == len(addresses) == len(links.share)
