"""Straggler wait: the part of the latency that other ranks wait for the rank with the longest computation."""

from __future__ import annotations

from collections import Counter

import pytest

from experiments.measurement.cluster_bench import straggler_wait_pct
from testbed.cluster.worker import ForwardTiming


def spent(compute_s: float, end_s: float, encode_s: float = 0.0, decode_s: float = 0.0) -> ForwardTiming:
    wait_s = end_s - compute_s - encode_s - decode_s
    return ForwardTiming(0.0, end_s, compute_s, encode_s, decode_s, 0.0, wait_s, 0, Counter(), 0, 0.0, 0.0, 0.0)


def test_it_is_what_the_straggler_computes_longer() -> None:
    # The straggler computes 8 s, the others 4 and 6 s. They wait 3 s longer on average, of 10 s.
    ranks = [spent(4.0, 10.0), spent(5.0, 10.0, encode_s=2.0, decode_s=1.0), spent(6.0, 9.0)]
    assert straggler_wait_pct(ranks) == pytest.approx(30)
    blocked = [done.wait_s + done.wire_s for done in ranks[:2]]
    assert blocked[0] - blocked[1] == pytest.approx(4)


def test_devices_that_compute_alike_do_not_wait_for_each_other() -> None:
    assert straggler_wait_pct([spent(3.0, 10.0), spent(3.0, 10.0)]) == 0
    assert straggler_wait_pct([spent(3.0, 10.0)]) is None
