"""Passes are measured one at a time, each with the counters before and after it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from testbed import session as module
from testbed.comm.tcp_info import TcpCounters
from testbed.device.spec import Device
from testbed.network.link_watch import TokenBucket
from testbed.network.qdisc import LinkReading, QdiscCounters
from testbed.session import Session
from topologies.link_graph import Hop, star

PASS_BYTES, START_BYTES = 9000, 100
WAY: list[Hop] = [("h0", "d0"), ("d0", "h1")]


class Wire:
    """What the links and TCP have counted: rank 0 sends to rank 1, over one link and the other."""

    def __init__(self) -> None:
        self.bytes: Counter[Hop] = Counter()
        self.sent = TcpCounters(0, 0, 0, 0)

    def send(self, size: int, retransmits: int = 0) -> None:
        self.bytes.update(dict.fromkeys(WAY, size))
        self.sent = TcpCounters(
            self.sent.wire_bytes + size, self.sent.packets + 6, self.sent.retransmits + retransmits, 0
        )


class FakeNetwork:
    token_buckets: dict[Hop, TokenBucket] = {}

    def __init__(self, wire: Wire):
        self.wire = wire

    def link_counters(self) -> LinkReading:
        return LinkReading(0.0, 0.0, {hop: QdiscCounters(self.wire.bytes[hop]) for hop in star(2).share})

    def carried_bytes(self) -> dict[Hop, int]:
        return {hop: self.wire.bytes[hop] for hop in star(2).share}


class FakeCluster:
    """Two ranks. Between the second and the third pass, and in the third, something else happens."""

    def __init__(self, wire: Wire):
        self.wire, self.passes = wire, 0
        self.limits: list[float] = []

    def call(self, name: str, *arguments: Any, timeout_s: float, phase: str) -> list[Any]:
        if name == "time_operation":
            self.wire.send(arguments[2] * START_BYTES)
        return [{1: self.wire.sent}, {0: TcpCounters(0, 0, 0, 0)}]

    def call_each(self, name: str, arguments: list[Any], *, timeout_s: float, phase: str) -> list[Any]:
        assert name == "measure" and len(arguments) == 2
        self.limits.append(timeout_s)
        self.passes += 1
        self.wire.send(START_BYTES + PASS_BYTES, retransmits=3 if self.passes == 3 else 0)
        if self.passes == 3:
            self.wire.bytes["h1", "d0"] += 5000
        return [f"rank 0, pass {self.passes}", f"rank 1, pass {self.passes}"]


def test_what_happens_in_one_pass_is_that_passs(monkeypatch: pytest.MonkeyPatch) -> None:
    made, wire = Session("loopback", star(2)), Wire()
    made.network, made.cluster = FakeNetwork(wire), FakeCluster(wire)  # type: ignore[assignment]
    made._shaped = made.network.link_counters()
    throttled = iter([0.0, 0.0, 0.0, 0.5, 0.5])
    monkeypatch.setattr(module, "throttled_s", lambda: next(throttled))
    passes = made.measure("key", "replay", [Device(), Device()], repeats=3, warmups=1, expected_s=2.0, computing_s=1.0)
    assert made.cluster.limits == [80.0] * 4  # type: ignore[attr-defined]
    assert [each.ranks[1] for each in passes] == ["rank 1, pass 2", "rank 1, pass 3", "rank 1, pass 4"]
    assert [each.wire_bytes for each in passes] == [PASS_BYTES] * 3
    seen = [each.conditions for each in passes]
    assert [found.foreign_bytes and found.foreign_bytes[1] for found in seen] == [0, 5000 - 2 * 66 - 3 * 36, 0]
    assert [found.retransmits for found in seen] == [0, 3, 0]
    assert [found.throttled_s for found in seen] == [0.0, 0.5, 0.0]
    assert all(found.seconds >= 0 for found in seen)
