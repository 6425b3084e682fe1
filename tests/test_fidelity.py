"""What the fidelity experiment takes for ideal, and when it says that a link does not keep its promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.fidelity import TOLERANCE, Message, _breaches, _messages, _needed_time_scale
from testbed.config import load_config
from testbed.errors import ConfigError
from testbed.schema import FidelityConfig


def message(pattern: str = "one_way", devices: int = 4, size_bytes: int = 1_000_000) -> Message:
    return Message(pattern, "tbf", devices, 10.0, size_bytes)


@pytest.mark.parametrize(
    ("pattern", "payload_bytes"),
    [("one_way", 1_000_000), ("both_ways", 1_000_000), ("all_gather", 3_000_000), ("all_reduce", 1_500_000)],
)
def test_the_ideal_is_the_busiest_links_bytes_over_the_rate(pattern: str, payload_bytes: int) -> None:
    assert message(pattern).payload_s(1e7) == pytest.approx(8 * payload_bytes / 1e7)
    headers = message(pattern).ideal_s(1e7) / message(pattern).payload_s(1e7)
    assert 1.045 < headers < 1.047  # 66 bytes a packet of 1448


def test_a_link_that_is_too_slow_or_too_fast_is_degraded() -> None:
    ideal = message().ideal_s(1e7)
    assert _breaches(message(), 1.09 * ideal, ideal, -1.0) == []
    assert _breaches(message(), 1.2 * ideal, ideal, None) == ["1.20 times the ideal"]
    assert _breaches(message(), 0.8 * ideal, ideal, None) == ["0.80 times the ideal"]
    assert _breaches(message(), ideal, ideal, -5.0) == ["link rate off by -5.0%"]
    brief = message(size_bytes=320)
    assert _breaches(brief, brief.ideal_s(1e8) + 0.9e-3, brief.ideal_s(1e8), None) == []


@given(st.floats(1.0, 50.0), st.sampled_from([320, 10_000, 1_000_000]), st.sampled_from([1.0, 4.0]))
def test_the_proposed_time_scale_is_the_least_that_keeps_the_promise(slowness: float, size: int, now: float) -> None:
    point = message(size_bytes=size)
    ideal = point.ideal_s(1e7)
    excess = slowness * ideal - ideal  # this machine's time: it stays when links slow down

    def kept(scale: float) -> bool:
        return excess <= TOLERANCE * ideal * scale / now + point.slack_s() + 1e-12

    scale = _needed_time_scale(point, slowness * ideal, ideal, None, now)
    assert scale is not None and kept(scale)
    assert scale == 1 or not kept(scale / 2)


def test_no_time_scale_helps_a_link_that_gives_bytes_away() -> None:
    ideal = message().ideal_s(1e7)
    assert _needed_time_scale(message(), 0.5 * ideal, ideal, None, 1.0) is None
    assert _needed_time_scale(message(), ideal, ideal, 5.0, 1.0) is None


def test_every_point_of_the_grid_once() -> None:
    config = load_config(["+experiment=fidelity", "rates=[10,20]", "devices=[2,4]", "shapers=[tbf,tclink]"])
    assert isinstance(config, FidelityConfig)
    found = _messages(config, 4)
    assert len(found) == len(set(found)) == 2 * 2 * len(config.patterns) * len(config.sizes_bytes)
    links = [(m.shaper, m.rate_mbps) for m in found]
    assert sum(a != b for a, b in zip(links, links[1:], strict=False)) == 3  # each link is set once


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("devices=[1,2]", "devices=1: must be whole numbers >= 2"),
        ("sizes_bytes=321", "sizes_bytes=321: must be multiples of 4"),
        ("shapers=tbff", "shapers=tbff: must be one of tbf, tclink, netem"),
        ("patterns=ring", "patterns=ring: must be one of one_way"),
        ("rates=0", "rates=0: must be numbers from 0.001 to 1000000"),
        ("bandwidths=10", "bandwidths=10: unknown"),
        ("astra.groups=1", "astra={'groups': 1}: unknown"),
    ],
)
def test_bad_input_names_the_key(word: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["+experiment=fidelity", word])
    assert text in str(error.value)
