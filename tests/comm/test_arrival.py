"""When messages count as arrived: after ideal links of sender and receiver, and after what the hosts add."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from testbed.comm.frame import HEADER_BYTES
from testbed.comm.pacing import Line, Unpaced, wire_bytes
from testbed.comm.routes import RankLinks
from testbed.comm.tcp import TcpGroup
from testbed.comm.wire import BRIEF_S, Wire, is_brief
from testbed.device.spec import Device
from tests.conftest import run_ranks

RATE_BPS = 10e6
HOST_S = 20e-3  # much more than this machine needs for a message


def seconds_of(size: int, rate_bps: float = RATE_BPS) -> float:
    """Time of one message's bytes on a link."""
    return 8 * wire_bytes(HEADER_BYTES + size) / rate_bps


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 10)), min_size=1, max_size=20))
def test_a_line_carries_one_message_after_another(messages: list[tuple[int, float]]) -> None:
    line = Line(RATE_BPS)
    spans = [line.carry(size, ready_s) for size, ready_s in messages]
    for (size, ready_s), (begin_s, end_s) in zip(messages, spans, strict=True):
        assert begin_s >= ready_s and end_s - begin_s == pytest.approx(8 * wire_bytes(size) / RATE_BPS)
    assert all(begin_s >= end_s for (_, end_s), (begin_s, _) in pairwise(spans))


def incast(late_s: float, size: int) -> float:
    """Seconds until rank 0 has a message of each of three others, one of which sends later."""

    def main(group: TcpGroup) -> float:
        # Nothing delays the bytes themselves, as where a full token bucket lets them through at once.
        group.set_links(RankLinks.one(group.rank, 4, Unpaced(RATE_BPS), RATE_BPS))
        group.barrier()
        begin = time.monotonic()
        if group.rank:
            time.sleep(late_s * (group.rank == 3))
            group.exchange_async({0: torch.zeros(size, dtype=torch.uint8)}, {}).wait()
        else:
            group.exchange_async({}, dict.fromkeys((1, 2, 3), size)).wait()
        return time.monotonic() - begin

    return run_ranks(4, main)[0]


def test_the_receivers_link_is_shared_by_senders_that_are_out_of_step() -> None:
    size, late_s = 10_000, 5e-3
    each_s = seconds_of(size)
    assert incast(late_s, size) >= 3 * each_s * 0.99  # the late one waits for the others
    assert incast(10 * each_s, size) >= 11 * each_s * 0.99  # it finds the link idle, and needs its own time


@pytest.mark.parametrize("time_scale", [1.0, 2.0])
def test_hosts_delay_every_message_but_those_of_the_emulation(time_scale: float) -> None:
    def main(group: TcpGroup) -> tuple[float, float, float]:
        group.set_links(RankLinks.one(group.rank, 2, Unpaced(), 1e9), time_scale)
        with group.hosts(Device(exchange_s=HOST_S).message_s, 0.0):
            begin = time.monotonic()
            group.barrier()
            barrier_s = time.monotonic() - begin
            begin = time.monotonic()
            for _ in range(2):
                group.all_gather(torch.zeros(8), [8, 8])
            gathers_s = time.monotonic() - begin
        begin = time.monotonic()
        group.all_gather(torch.zeros(8), [8, 8])
        return barrier_s, gathers_s, time.monotonic() - begin

    for barrier_s, gathers_s, after_s in run_ranks(2, main):
        assert barrier_s < HOST_S and after_s < HOST_S
        assert 2 * time_scale * HOST_S <= gathers_s < 3 * time_scale * HOST_S


def test_only_lateness_beyond_links_and_hosts_counts() -> None:
    def main(group: TcpGroup) -> tuple[float, float]:
        group.set_links(RankLinks.one(group.rank, 2, Unpaced(1e9), 1e9))
        late = []
        for host_s in (HOST_S, 0.0):
            group.barrier()
            group.traffic.reset()
            with group.hosts(Device(exchange_s=host_s).message_s, 0.0):
                group.all_gather(torch.zeros(8), [8, 8])
            late.append(group.traffic.late_s)
        return late[0], late[1]

    for hidden_s, shown_s in run_ranks(2, main):
        assert hidden_s < 2e-3 and shown_s < HOST_S  # a wake-up of a busy machine
        assert shown_s > 0


@given(st.integers(0, 10**7), st.floats(1e5, 1e9), st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]))
def test_the_time_scale_does_not_decide_which_messages_go_in_rounds(
    size: int, rate_bps: float, time_scale: float
) -> None:
    group = TcpGroup(0, 1, {}, {})
    try:
        group.set_links(RankLinks.one(0, 1, Unpaced(), rate_bps / time_scale), time_scale)
        if abs(8 * size / rate_bps - BRIEF_S) > 1e-9:
            assert group._wire.is_brief(size) == is_brief(size, rate_bps) == (Wire(rate_bps).rounds(size, 4) == 1)
    finally:
        group.close()


def test_the_cost_model_adds_copies_between_device_and_host() -> None:
    plain, staged = Wire(1e8), Wire(1e8, staging_bytes_per_s=1e9)
    assert staged.message_s(10**6) - plain.message_s(10**6) == pytest.approx(2e-3)
    assert staged.bulk_s(8e6) - plain.bulk_s(8e6) == pytest.approx(2e-3)
    assert Device(exchange_s=1e-4, staging_bytes_per_s=1e9).message_s(10**6) == pytest.approx(2.1e-3)


def test_peers_may_compute_before_they_send() -> None:
    def main(group: TcpGroup) -> None:
        group.set_links(RankLinks.one(group.rank, 2, Unpaced(), 1e9))
        with group.hosts(Device().message_s, computing_s=2.0):
            time.sleep(0.5 * group.rank)  # longer than an operation may take
            group.all_gather(torch.zeros(8), [8, 8])

    run_ranks(2, main, timeout_s=0.2)


def test_what_a_machine_needs_to_hand_a_message_over_is_hidden() -> None:
    def main(group: TcpGroup) -> float:
        group.set_links(RankLinks.one(group.rank, 2, Unpaced(), 1e9))
        group.barrier()
        with group.hosts(Device(exchange_s=HOST_S).message_s, 0.0):
            begin = group.traffic.computed_s = time.monotonic()  # a segment has ended
            time.sleep(HOST_S / 2)  # this machine is slow
            group.all_gather(torch.zeros(8), [8, 8])
            first_s = time.monotonic() - begin
            time.sleep(HOST_S / 2)
            group.all_gather(torch.zeros(8), [8, 8])
        return max(abs(first_s - HOST_S), abs(time.monotonic() - begin - 2 * HOST_S))

    assert max(run_ranks(2, main)) < HOST_S / 2
