"""What degrades a repeat, and that nothing else does."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.measurement.fidelity_checks import FidelityCheck, fidelity_checks
from testbed.cluster.conditions import Conditions
from testbed.network.link_watch import TokenBucket
from testbed.session import MeasuredPass

UP, DOWN = ("h0", "d0"), ("d0", "h1")
GOOD = Conditions(
    seconds=1.0,
    cores=2,
    foreign_cpu_s=0.1,
    carried_bytes={UP: 5000, DOWN: 5000},
    foreign_bytes=(UP, 0),
    packets=10_000,
    retransmits=0,
    dropped=0,
    out_of_order=0,
    rate_error_pct=(UP, -1.0),
    burst=(UP, 6200.0),
)
NETWORK: Any = SimpleNamespace(
    token_buckets={UP: TokenBucket(1e6, 6250, 3000), DOWN: TokenBucket(1e6, 6250, 3000)}, refused_settings=list
)


def check(*passes: Conditions, network: Any = NETWORK, sends: bool = True) -> list[FidelityCheck]:
    return fidelity_checks([MeasuredPass([], 5000.4, seen) for seen in passes], network, sends)


def test_a_good_pass_has_its_columns_and_no_note() -> None:
    (found,) = check(GOOD)
    assert found.notes == []
    assert found.columns == {
        "wire_bytes": 5000,
        "foreign_cpu_pct": 5.0,
        "throttled_ms": 0.0,
        "foreign_bytes": 0,
        "link_rate_error_pct": -1.0,
        "link_burst_bytes": 6200,
        "retransmits": 0,
        "out_of_order": 0,
    }
    assert found.shown == set(found.columns)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"foreign_cpu_s": 1 / 3}, "other programs kept 17% of the cores busy"),
        ({"throttled_s": 0.05}, "the CPU quota stopped this run for 50 ms"),
        ({"changed": (DOWN,)}, "link d0-h1 is no longer shaped as it was"),
        ({"foreign_bytes": (DOWN, 1200)}, "link d0-h1 carried 1200 foreign bytes"),
        ({"foreign_bytes": (DOWN, -700)}, "link d0-h1 carried 700 bytes less than ranks sent"),
        ({"rate_error_pct": (DOWN, -5.04)}, "link rate of d0-h1 off by -5.0% while bytes waited"),
        ({"rate_error_pct": (UP, 3.2)}, "link rate of h0-d0 off by +3.2% while bytes waited"),
        ({"burst": (UP, 12_000.0)}, "link h0-d0 let 12,000 bytes through at once; its bucket is 6,250"),
        ({"retransmits": 101}, "TCP sent 101 of 10000 packets again, which no queue had dropped"),
        ({"out_of_order": 11}, "11 of 10000 packets came out of order"),
    ],
)
def test_each_cause_is_named_in_the_repeat_that_it_hit_and_in_no_other(changes: dict[str, Any], note: str) -> None:
    before, hit, after = check(GOOD, replace(GOOD, **changes), GOOD)
    assert hit.notes == [note]
    assert before.notes == after.notes == []


@pytest.mark.parametrize(
    "changes",
    [
        {"foreign_cpu_s": 0.21},  # 10% and what the kernel rounds
        {"throttled_s": 0.01},
        {"retransmits": 10, "out_of_order": 10},
        {"retransmits": 500, "dropped": 495, "out_of_order": 500},  # a queue that is too short by intent
        {"burst": (UP, 7400.0)},
        {"rate_error_pct": (UP, -3.0)},
    ],
)
def test_a_pass_within_the_limits_is_sound(changes: dict[str, Any]) -> None:
    (found,) = check(replace(GOOD, **changes))
    assert found.notes == []


def test_short_passes_are_judged_together() -> None:
    short = replace(GOOD, seconds=0.05, foreign_cpu_s=0.02)  # 20% of the cores, within what the kernel rounds
    assert check(short)[0].notes == []
    found = check(*[short] * 5)
    assert [each.notes for each in found] == [["other programs kept 20% of the cores busy, over all repeats"]] * 5


def test_a_refused_setting_degrades_what_sends() -> None:
    refused = SimpleNamespace(token_buckets={}, refused_settings=lambda: ["net.ipv4.some_setting stays 1"])
    bare = Conditions(1.0)
    (found,) = check(bare, network=refused)
    assert found.notes == ["the kernel refused a setting of links: net.ipv4.some_setting stays 1"]
    assert check(bare, network=refused, sends=False)[0].notes == []
    assert found.shown == {"wire_bytes", "throttled_ms"}  # nothing else is counted on such a system
