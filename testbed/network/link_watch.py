"""What links do during a forward pass: the rate that they give while bytes wait, and the bursts that they let through.

A thread reads the counters of all queues two hundred times a second. Two properties of a token bucket show in them,
whatever the ranks do:

- **Rate.** Between two instants at which bytes wait, the bucket is empty at both. What passed is the rate times the
  time between them, except for one GSO segment.
- **Burst.** In any period, no more passes than the rate times the period and one bucket. What passed beyond the rate is
  a burst that the link has let through.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.errors import EnvironmentFault
from testbed.network.qdisc import LinkReading, QdiscCounters
from topologies.link_graph import Hop

# As long as a bucket of the project's own shaper lasts. The bucket makes up for a shorter pause of the sender, so no
# pause between two readings looks like a slower link.
PERIOD_S = 5e-3
LONG_PERIOD = 1.5  # buckets: a period that has become longer may contain a pause, and is left out
LONG_READING_S = 1e-3  # a reading that took longer, because another process had the core, is of no certain time
SEGMENT_ERROR = math.sqrt(1 / 6)  # standard deviation of the difference of two segments that have passed in part
CERTAIN = 0.01  # standard deviation with which a rate is known well enough to be reported
FASTER = 1.03  # a rate this much higher is reported as a rate and not as a burst


@dataclass(frozen=True)
class TokenBucket:
    """How a hop is shaped. bytes_per_s: its rate. size_bytes: bucket. segment_bytes: largest GSO segment."""

    bytes_per_s: float
    size_bytes: int
    segment_bytes: int


class HopWatch:
    """The rate and the largest burst of one hop, from the readings of its counters."""

    def __init__(self, bucket: TokenBucket):
        self.bucket = bucket
        self._last: tuple[float, QdiscCounters] | None = None  # middle of the last certain reading
        self._in_run = False
        self._runs = 0
        self._busy_s, self._busy_bytes = 0.0, 0
        self._start_bytes: int | None = None
        self._least = 0.0  # of the readings so far: bytes sent before it, less what the rate allows
        self.burst_bytes = 0.0

    def add(self, before_s: float, after_s: float, counters: QdiscCounters) -> None:
        """One more reading, of an instant between two monotonic times."""
        self._add_burst(before_s, after_s, counters.bytes)
        if after_s - before_s > LONG_READING_S:
            self._last, self._in_run = None, False
            return
        middle_s = (before_s + after_s) / 2
        last, self._last = self._last, (middle_s, counters)
        in_run, self._in_run = self._in_run, False
        if last is None or not last[1].backlog_bytes or not counters.backlog_bytes:
            return
        period_s = middle_s - last[0]
        if period_s <= LONG_PERIOD * self.bucket.size_bytes / self.bucket.bytes_per_s:
            self._busy_s += period_s
            self._busy_bytes += counters.bytes - last[1].bytes
            self._runs += not in_run
            self._in_run = True

    def _add_burst(self, before_s: float, after_s: float, sent: int) -> None:
        if self._start_bytes is None:
            self._start_bytes, self._start_s, self._least = sent, before_s, 0.0
            return
        passed, rate = sent - self._start_bytes, FASTER * self.bucket.bytes_per_s
        self.burst_bytes = max(self.burst_bytes, passed - rate * (after_s - self._start_s) - self._least)
        self._least = min(self._least, passed - rate * (before_s - self._start_s))

    @property
    def rate_error_pct(self) -> float | None:
        """How far the rate is above the set one while bytes wait; None if they do not wait long enough to tell."""
        uncertain_s = SEGMENT_ERROR * math.sqrt(self._runs) * self.bucket.segment_bytes / self.bucket.bytes_per_s
        if not self._runs or uncertain_s > CERTAIN * self._busy_s:
            return None
        return 100 * (self._busy_bytes / self._busy_s / self.bucket.bytes_per_s - 1)


class LinkWatch:
    """Watches all shaped hops from the beginning of its context to the end.

    read: the counters now. buckets: of each hop to watch; without any, nothing is read.
    """

    def __init__(self, read: Callable[[], LinkReading | None], buckets: Mapping[Hop, TokenBucket]):
        self.hops = {hop: HopWatch(bucket) for hop, bucket in buckets.items()}
        self._read = read
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link-watch", daemon=True)
        self._fault: EnvironmentFault | None = None

    def __enter__(self) -> LinkWatch:
        if self.hops:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._ended.set()
        if self.hops:
            self._thread.join()
        if self._fault is not None and kind is None:
            raise self._fault

    def worst_rate(self) -> tuple[Hop, float] | None:
        """The hop whose rate is farthest from the set one, and the error in percent; None if no rate is known."""
        known = {hop: error for hop, watch in self.hops.items() if (error := watch.rate_error_pct) is not None}
        return max(known.items(), key=lambda found: abs(found[1])) if known else None

    def largest_burst(self) -> tuple[Hop, float] | None:
        """The hop with the largest burst in relation to its bucket, and its bytes; None without hops."""
        sizes = {hop: watch.burst_bytes for hop, watch in self.hops.items()}
        return max(sizes.items(), key=lambda found: found[1] / self.hops[found[0]].bucket.size_bytes, default=None)

    def _run(self) -> None:
        try:
            while not self._ended.wait(PERIOD_S):
                reading = self._read()
                if reading is not None:
                    for hop, watch in self.hops.items():
                        watch.add(reading.before_s, reading.after_s, reading.counters[hop])
        except EnvironmentFault as fault:
            self._fault = fault
