"""Rates and bursts of a hop, from the counters of a token bucket that is simulated packet by packet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import pytest

from testbed.errors import EnvironmentFault
from testbed.network.link_watch import PERIOD_S, HopWatch, LinkWatch, TokenBucket
from testbed.network.qdisc import LinkReading, QdiscCounters

RATE, BUCKET, SEGMENT = 12.5e6, 62_500, 30_000  # 100 Mbps, 5 ms, half of it
HOP = ("h0", "d0")


def watched(
    arrivals: Iterable[tuple[float, int]], seconds: float, rate: float = RATE, bucket: int = BUCKET
) -> HopWatch:
    """What is seen of a link of this real rate and bucket, to which segments come at these times.

    The link is thought to be one of RATE and BUCKET.
    """
    watch = HopWatch(TokenBucket(RATE, BUCKET, SEGMENT))
    coming, waiting = list(arrivals), []
    tokens, sent, step = float(bucket), 0, 1e-4
    for tick in range(round(seconds / step)):
        now = tick * step
        tokens = min(bucket, tokens + rate * step)
        while coming and coming[0][0] <= now:
            waiting.append(coming.pop(0)[1])
        while waiting and waiting[0] <= tokens:
            tokens -= waiting[0]
            sent += waiting.pop(0)
        if tick % round(PERIOD_S / step) == 7:
            watch.add(now, now + 1e-5, QdiscCounters(sent, 0, sum(waiting), 0))
    return watch


def bulk(begin_s: float, size: int) -> list[tuple[float, int]]:
    return [(begin_s, SEGMENT)] * (size // SEGMENT)


@pytest.mark.parametrize("share", [1.0, 0.95, 1.05, 0.6])
def test_the_rate_of_a_busy_link_is_known_to_a_segment(share: float) -> None:
    watch = watched(bulk(0.02, 3_000_000), 0.3, rate=share * RATE)
    assert watch.rate_error_pct == pytest.approx(100 * (share - 1), abs=1.1)  # a segment is 1% of what passes


def test_rounds_and_pauses_between_them_do_not_look_like_a_slower_link() -> None:
    rounds = [arrival for k in range(12) for arrival in bulk(0.02 + 0.07 * k, 780_000)]  # 62 ms of the link, then 8 ms
    error = watched(rounds, 0.9).rate_error_pct
    assert error is not None and abs(error) < 1.5
    error = watched(rounds, 0.95, rate=0.95 * RATE).rate_error_pct
    assert error is not None and -6.5 < error < -3.5


def test_nothing_is_said_of_a_link_that_is_hardly_busy() -> None:
    assert watched([(0.05 * k, 3000) for k in range(20)], 1.0).rate_error_pct is None
    assert watched(bulk(0.0, 600_000), 0.3).rate_error_pct is None  # 48 ms
    assert watched(bulk(0.0, 1_500_000), 0.3).rate_error_pct is not None  # 120 ms


def test_a_bucket_lets_through_no_more_than_it_holds() -> None:
    rounds = [arrival for k in range(12) for arrival in bulk(0.021 + 0.0713 * k, 600_000)]
    assert 0.5 * BUCKET < watched(rounds, 0.9).burst_bytes <= BUCKET + SEGMENT / 10
    assert watched(rounds, 0.9, bucket=2 * BUCKET).burst_bytes > 1.5 * BUCKET


def test_a_slightly_faster_link_is_no_burst_however_long_it_runs() -> None:
    assert watched(bulk(0.02, 60_000_000), 5.0, rate=1.02 * RATE).burst_bytes <= BUCKET


def test_a_reading_of_uncertain_time_is_left_out() -> None:
    watch = HopWatch(TokenBucket(RATE, BUCKET, SEGMENT))
    for k in range(100):
        late = 4e-3 if k % 2 else 0.0
        watch.add(0.01 * k, 0.01 * k + late, QdiscCounters(round(RATE * (0.01 * k + late)), 0, 1, 0))
    assert watch.rate_error_pct is None
    assert watch.burst_bytes < 0.005 * RATE


def test_a_watch_reads_from_beginning_to_end() -> None:
    sent = [0]

    def read() -> LinkReading:
        sent[0] += 100
        return LinkReading(time.monotonic(), time.monotonic(), {HOP: QdiscCounters(sent[0], 1, 50, 0)})

    with LinkWatch(read, {HOP: TokenBucket(1e6, 10_000, 10)}) as watch:
        time.sleep(0.2)
    count = sent[0] // 100
    time.sleep(0.05)
    assert sent[0] // 100 == count > 5
    rate = watch.worst_rate()
    assert rate is not None and rate[0] == HOP and rate[1] < -90
    with LinkWatch(read, {}) as idle:
        pass
    assert idle.worst_rate() is None and idle.largest_burst() is None and sent[0] // 100 == count


def test_a_kernel_that_does_not_answer_is_no_quiet_link() -> None:
    def read() -> LinkReading:
        raise EnvironmentFault("no answer")

    def watch(read: Callable[[], LinkReading]) -> None:
        with LinkWatch(read, {HOP: TokenBucket(1e9, 1000, 10)}):
            time.sleep(0.05)

    with pytest.raises(EnvironmentFault, match="no answer"):
        watch(read)
