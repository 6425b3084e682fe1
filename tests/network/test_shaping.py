"""The tc lines as text, and the arithmetic behind them."""

from __future__ import annotations

import itertools
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.comm.pacing import SEGMENT_PAYLOAD, BurstCredit, TransportPacing, wire_bytes
from testbed.network.probe import kernel_qdiscs, try_mininet
from testbed.network.sandbox import needs_user_namespace, tool_path, unshare
from testbed.network.shaping import SHAPERS, LinkPolicy
from topologies.link_graph import star


@pytest.mark.parametrize(
    ("mbps", "line"),
    [
        (10, "qdisc replace dev d0-h1 root handle 1: tbf rate 10000000bit burst 6250b limit 1000000b"),
        (100, "qdisc replace dev d0-h1 root handle 1: tbf rate 100000000bit burst 62500b limit 1000000b"),
        (500, "qdisc replace dev d0-h1 root handle 1: tbf rate 500000000bit burst 250000b limit 1000000b"),
        (1.25, "qdisc replace dev d0-h1 root handle 1: tbf rate 1250000bit burst 1600b limit 1000000b"),
    ],
)
def test_golden_tc_lines(mbps: float, line: str) -> None:
    policy = LinkPolicy(mbps * 1e6)
    assert policy.commands("d0-h1", host=False) == [line]
    first = "qdisc replace dev d0-h1 parent 1: handle 10: pfifo_fast"  # acknowledgements leave a host first
    assert policy.commands("d0-h1", host=True) == [line, first]


def test_a_short_queue_has_a_shorter_bucket() -> None:
    line = "qdisc replace dev d0-h1 root handle 1: tbf rate 20000000bit burst 2000b limit 8000b"
    assert LinkPolicy(20e6, queue_kb=8).commands("d0-h1", host=False) == [line]
    netem = LinkPolicy(20e6, "netem", queue_kb=8)
    assert netem.commands("d0-h1", host=False) == [
        "qdisc replace dev d0-h1 root handle 2: netem rate 20000000bit limit 5"
    ]


RATES_AND_QUEUES = given(st.floats(1e5, 1e10), st.floats(4, 1e6))


@RATES_AND_QUEUES
def test_a_bucket_is_at_least_a_packet_and_at_most_5_ms_and_a_quarter_of_the_queue(
    rate_bps: float, queue: float
) -> None:
    bucket = LinkPolicy(rate_bps, queue_kb=queue).bucket_bytes
    assert bucket >= 1600
    assert bucket == 1600 or bucket == pytest.approx(min(5e-3 * rate_bps / 8, 250 * queue), rel=1e-3)


@RATES_AND_QUEUES
def test_no_bucket_splits_a_gso_segment(rate_bps: float, queue: float) -> None:
    policy = LinkPolicy(rate_bps, queue_kb=queue)
    assert policy.gso_packets >= 1
    assert policy.gso_packets == 1 or policy.gso_packets * wire_bytes(SEGMENT_PAYLOAD) <= policy.bucket_bytes / 2


@given(st.integers(0, 10**7))
def test_wire_bytes_adds_a_header_per_packet(payload: int) -> None:
    assert payload <= wire_bytes(payload) <= payload * 1.05 + 66


@given(st.lists(st.integers(1, 65536), min_size=1, max_size=20), st.floats(1e6, 1e9))
def test_paced_chunks_leave_at_the_rate(chunks: list[int], rate_bps: float) -> None:
    pacing = TransportPacing(rate_bps)
    last = [pacing.release(chunk, 1000.0, 1000.0) for chunk in chunks][-1]
    assert last - 1000.0 == pytest.approx(8 * sum(map(wire_bytes, chunks)) / rate_bps, rel=1e-6, abs=1e-9)


@given(st.integers(1, 65536), st.floats(1e6, 1e9), st.integers(1600, 10**6))
def test_burst_credit_is_the_smaller_of_message_and_bucket(chunk: int, rate_bps: float, bucket: int) -> None:
    delay_s = BurstCredit(rate_bps, bucket).release(chunk, 50.0, 50.0) - 50.0
    assert delay_s == pytest.approx(8 * min(wire_bytes(chunk), bucket) / rate_bps, abs=1e-9)


@pytest.mark.skipif(bool(try_mininet(star(2)).reason), reason=try_mininet(star(2)).reason)
@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(SHAPERS, 2)))
def test_one_shaper_replaces_another_on_the_same_links(first: str, second: str) -> None:
    lines = [line for shaper in (first, second, first) for line in LinkPolicy(1e7, shaper).commands("v0", host=True)]
    text = "\n".join(lines)
    if "netem" not in kernel_qdiscs():  # another kind stands in for it, with the same handle
        text = re.sub(r"netem rate \d+bit limit", "pfifo limit", text)
    script = "ip link add v0 type veth peer name v1 && tc -batch -"
    command = [*unshare(needs_user_namespace()), "sh", "-c", script]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env={"PATH": tool_path()})
    assert done.returncode == 0, done.stderr
