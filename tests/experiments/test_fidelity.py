"""Ideal times of the fidelity experiment, and the conditions under which a repeat is degraded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.fidelity import TOLERANCE, _breaches, _measure, _needed_time_scale, _operations
from experiments.measurement.link_operations import LinkOperation
from testbed.config.load import load_config
from testbed.config.schema import FidelityConfig
from testbed.errors import ConfigError
from topologies.link_graph import link_graph, star

STAR = star(4), "pairwise"


def operation(pattern: str = "one_way", devices: int = 4, size_bytes: int = 1_000_000) -> LinkOperation:
    return LinkOperation(pattern, "tbf", devices, 10.0, size_bytes, 1000.0)


@pytest.mark.parametrize(
    ("pattern", "payload_bytes"),
    [
        *(("one_way", 1_000_000), ("both_ways", 1_000_000), ("all_gather", 3_000_000), ("all_reduce", 1_500_000)),
        *(("incast_all", 3_000_000), ("incast_ordered", 3_000_000)),
    ],
)
def test_the_ideal_is_the_busiest_links_bytes_over_the_rate(pattern: str, payload_bytes: int) -> None:
    assert operation(pattern).payload_s(*STAR, 1e7) == pytest.approx(8 * payload_bytes / 1e7)
    headers = operation(pattern).ideal_s(*STAR, 1e7) / operation(pattern).payload_s(*STAR, 1e7)
    assert 1.045 < headers < 1.047  # 66 bytes a packet of 1448


def test_a_link_that_is_too_slow_or_too_fast_is_degraded() -> None:
    ideal = operation().ideal_s(*STAR, 1e7)
    assert _breaches(operation(), 1.09 * ideal, ideal, -1.0) == []
    assert _breaches(operation(), 1.2 * ideal, ideal, None) == ["1.20 times the ideal"]
    assert _breaches(operation(), 0.98 * ideal, ideal, None) == []
    assert _breaches(operation(), 0.9 * ideal, ideal, None) == ["0.90 times the ideal"]
    assert _breaches(operation(), ideal, ideal, -5.0) == ["link rate off by -5.0%"]
    brief = operation(size_bytes=320)
    ideal = brief.ideal_s(*STAR, 1e8)
    assert _breaches(brief, ideal + 0.9e-3, ideal, None) == []
    assert _breaches(brief, 0.9 * ideal, ideal, None) == ["0.90 times the ideal"]


@given(st.floats(1.0, 50.0), st.sampled_from([320, 10_000, 1_000_000]), st.sampled_from([1.0, 4.0]))
def test_the_proposed_time_scale_is_the_smallest_sufficient_one(slowness: float, size: int, now: float) -> None:
    point = operation(size_bytes=size)
    ideal = point.ideal_s(*STAR, 1e7)
    excess = slowness * ideal - ideal  # this machine's time: it stays when links slow down

    def kept(scale: float) -> bool:
        return excess <= TOLERANCE * ideal * scale / now + point.slack_s() + 1e-12

    scale = _needed_time_scale(point, slowness * ideal, ideal, None, now)
    assert scale is not None and kept(scale)
    assert scale == 1 or not kept(scale / 2)


def test_no_time_scale_helps_a_link_that_is_too_fast() -> None:
    ideal = operation().ideal_s(*STAR, 1e7)
    assert _needed_time_scale(operation(), 0.5 * ideal, ideal, None, 1.0) is None
    assert _needed_time_scale(operation(), ideal, ideal, 5.0, 1.0) is None


def test_every_point_of_the_grid_once() -> None:
    words = ["rates=[10,20]", "devices=[2,4]", "shapers=[tbf,netem]", "queues_kb=[16,1000]"]
    config = load_config(["+experiment=fidelity", *words])
    assert isinstance(config, FidelityConfig)
    found = _operations(config, 4)
    assert len(found) == len(set(found)) == 2 * 2 * 2 * len(config.patterns) * len(config.sizes_bytes)
    links = [m.link for m in found]
    assert sum(a != b for a, b in zip(links, links[1:], strict=False)) == 7  # links are set once


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("devices=[1,2]", "devices=1: must be whole numbers >= 2"),
        ("sizes_bytes=321", "sizes_bytes=321: must be multiples of 4"),
        ("shapers=tbff", "shapers=tbff: must be one of tbf, tclink, netem"),
        ("patterns=ring", "patterns=ring: must be one of one_way"),
        ("rates=0", "rates=0: must be numbers from 0.001 to 1000000"),
        ("queues_kb=[16,1]", "queues_kb=1: must be numbers from 4 to 1000000 (KB)"),
        ("queues_kb=16 shapers=[tbf,tclink]", "queues_kb=16: must be 1000: shaper tclink"),
        ("queues_kb=16 topology=ring", "queues_kb=16: must be 1000: queues belong to switch ports"),
        ("bandwidths=10", "bandwidths=10: unknown"),
        ("astra.groups=1", "astra.groups=1: unknown"),
    ],
)
def test_bad_input_names_the_key(word: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["+experiment=fidelity", *word.split()])
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "megabytes"),
    [("all_gather", 2 / 0.25 + 1), ("all_reduce", 6 / 4 / 0.25), ("one_way", 1), ("incast_all", 2 / 0.25)],
)
def test_the_ideal_includes_a_slower_trunk(pattern: str, megabytes: float) -> None:
    subnets = link_graph(("h1/2 d0", "h2/2 d1", "d0 d1"), 0.25, 4)
    over = subnets, subnets.suited
    assert operation(pattern).payload_s(*over, 8e6) == pytest.approx(megabytes)
    full = operation(pattern).full_hop(*over)
    assert full == {"all_gather": None, "one_way": ("h0", "d0"), "incast_all": ("d1", "d0")}.get(pattern, full)


class DroppingSession:
    """An incast that takes three times as long as it should, as its queue dropped packets (or not)."""

    time_scale, burst_credit_bytes, all_gather, graph = 1.0, 0, "pairwise", star(4)

    def __init__(self, drops: int):
        self.drops, self.network = drops, self
        self.repeats = 0

    def collective_s(self, pattern: str, size: int, repeats: int) -> list[float]:
        self.repeats += repeats
        return [3 * LinkOperation(pattern, "tbf", 4, 10.0, size, 16.0).ideal_s(*STAR, 1e7)] * repeats

    def carried_bytes(self) -> dict[tuple[str, str], int]:
        return dict.fromkeys(self.graph.share, 1000 * self.repeats)

    def retransmits(self) -> int:
        return self.drops * self.repeats

    def dropped_packets(self) -> int:
        return self.drops * self.repeats


@pytest.mark.parametrize(("drops", "fidelity", "needed"), [(5, "ok", None), (0, "degraded", 32.0)])
def test_an_incast_that_drops_packets_is_a_result_and_a_slow_one_that_does_not_a_fault(
    drops: int, fidelity: str, needed: float | None
) -> None:
    config = load_config(["+experiment=incast", "rates=10", "repeats=2"])
    assert isinstance(config, FidelityConfig)
    point = LinkOperation("incast_all", "tbf", 4, 10.0, 10_000, 16.0)
    rows = list(_measure(config, DroppingSession(drops), point))  # pyright: ignore[reportArgumentType]
    assert [row["fidelity"] for row in rows] == [fidelity] * 2
    assert {(row["drops"], row["retransmits"], row["needed_time_scale"]) for row in rows} == {
        (2 * drops, 2 * drops, needed)
    }
