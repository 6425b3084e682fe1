"""Is the emulated network what it claims to be, just before and just after it is measured with?"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import psutil

from testbed.comm.pacing import wire_bytes
from testbed.session import Session

RATE_S, RATE_REPEATS = 0.2, 3  # a link's rate is measured for so long, after a transfer that does not count
MESSAGE_BYTES, MESSAGES = 320, 9  # ASTRA's codes of a layer at G = 1
RATE_LIMIT_PCT = 3.0
BUSY_LIMIT_PCT = 25.0
STEAL_LIMIT_PCT = 5.0
ATTEMPTS = 3  # while a virtual machine's host takes more than that away
RATE_BUDGET_S = 3.0  # for attempts at a link's rate

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """What a cluster's links and cores really give.

    rate_error_pct: for each rate (Mbps, on this machine's clock), of the link that is furthest off, all links loaded
    both ways at once. message_overhead_s: of one exchange of small messages between all devices, beyond their bits over
    the rate, in seconds of this machine. busy_pct: of the machine's cores while the cluster rests, mostly others'
    work. idle_bytes: on the data network meanwhile; None without counters.
    """

    rate_error_pct: dict[float, float]
    message_overhead_s: float
    busy_pct: float
    idle_bytes: int | None

    def breaches(self, link_mbps: float | None, time_scale: float = 1.0) -> list[str]:
        """What is wrong with a point at a link rate (None: nothing is sent), in words; empty if nothing is.

        time_scale: that the point was measured with.
        """
        found = []
        error = 0.0 if link_mbps is None else self.rate_error_pct.get(link_mbps, 0.0)
        if abs(error) > RATE_LIMIT_PCT:
            enough = time_scale * 2 ** math.ceil(math.log2(abs(error) / RATE_LIMIT_PCT))
            # Slower links need less of this machine; one that is too fast would be so at any scale.
            found.append(f"link rate off by {error:+.1f}%" + (f" (try time_scale={enough:g})" if error < 0 else ""))
        if self.busy_pct > BUSY_LIMIT_PCT:
            found.append(f"other programs keep {self.busy_pct:.0f}% of the cores busy")
        if self.idle_bytes:
            found.append(f"{self.idle_bytes} foreign bytes on the data network")
        return found


def calibrate(session: Session, link_rates: Iterable[float]) -> Calibration:
    """Measure a cluster, about a second for each rate of its links (Mbps, on this machine's clock).

    The links stay at the fastest of them, and at this machine's pace.
    """
    session.time_scale = 1.0
    psutil.cpu_percent()
    idle = session.idle_bytes()
    busy = psutil.cpu_percent()
    errors: dict[float, float] = {}
    overhead = 0.0
    if session.devices > 1:
        for rate in sorted(link_rates):
            session.shape(rate)
            _, errors[rate] = calmest(partial(_rate_error_pct, session, 1e6 * rate), RATE_BUDGET_S)
        ideal = 8 * (session.devices - 1) * wire_bytes(MESSAGE_BYTES) / (1e6 * max(errors))
        overhead = max(0.0, statistics.median(session.collective("all_gather", MESSAGE_BYTES, MESSAGES)) - ideal)
    return Calibration(errors, overhead, busy, idle)


def calmest(measure: Callable[[], T], budget_s: float) -> tuple[float, T]:
    """(percent stolen, what ``measure`` gave) of the attempt in which the host took the least of the cores' time away.

    One attempt if that was little, else several, none of which begins after ``budget_s`` seconds. They are judged by
    what the host did, never by what they gave. Nothing is stolen where the system does not tell.
    """
    attempts, deadline = [], time.monotonic() + budget_s
    while len(attempts) < ATTEMPTS and (not attempts or time.monotonic() < deadline):
        psutil.cpu_times_percent()  # the next call counts from here
        result = measure()
        attempts.append((getattr(psutil.cpu_times_percent(), "steal", 0.0), result))
        if attempts[-1][0] <= STEAL_LIMIT_PCT:
            break
    return min(attempts, key=lambda attempt: attempt[0])


def _rate_error_pct(session: Session, rate_bps: float) -> float:
    """Of the device whose downlink is furthest from the rate, by the kernel's counters where there are any."""
    size = round(rate_bps / 8 * RATE_S / (session.devices - 1))
    session.rank_times("all_gather", size, 1)
    before = session.network.delivered_bytes()
    spans = session.rank_times("all_gather", size, RATE_REPEATS)
    after = session.network.delivered_bytes()
    if before is None or after is None:
        received = [float((session.devices - 1) * wire_bytes(size))] * session.devices
    else:
        received = [(end - begin) / RATE_REPEATS for begin, end in zip(before, after, strict=True)]
    seconds = [statistics.median(end - begin for begin, end in rank) for rank in spans]
    rates = [8 * count / each for count, each in zip(received, seconds, strict=True)]
    return 100 * max((rate / rate_bps - 1 for rate in rates), key=abs)
