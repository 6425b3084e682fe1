"""Is the emulated network what it claims to be, just before and just after it is measured with?"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import psutil

from testbed.comm.pacing import wire_bytes
from testbed.errors import ClusterError
from testbed.results.schema import STEAL_LIMIT_PCT
from testbed.session import Session
from topologies.link_graph import Hop, Load

RATE_S, RATE_REPEATS = 0.2, 3  # a link's rate is measured for so long, after a transfer that does not count
MESSAGE_BYTES, MESSAGES = 320, 9  # ASTRA's codes of a layer at G = 1
FULL_SHARE = 0.95  # of an operation's time: a link that is busy for so long can be told its rate from
RATE_LIMIT_PCT = 3.0
BUSY_LIMIT_PCT = 25.0
ATTEMPTS = 3  # while a virtual machine's host takes more than that away
RATE_BUDGET_S = 3.0  # for attempts at a link's rate

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """What a cluster's links and cores really give.

    rate_error_pct: for each rate (Mbps, on this machine's clock), of the link that is furthest off, links loaded both
    ways at once. message_overhead_s: of an all-gather of small messages, beyond their bits over the
    rate, in seconds of this machine. busy_pct: of the machine's cores while the cluster rests, mostly others' work.
    idle_bytes: on the data network meanwhile; None without counters.
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


def calibrate(session: Session, link_rates: Collection[float]) -> Calibration:
    """Measure a cluster, about a second for each rate of its links (Mbps, on this machine's clock).

    The links stay at the fastest of them.
    """
    psutil.cpu_times_percent()  # the next call counts from here
    idle = session.idle_bytes()
    spent = psutil.cpu_times_percent()
    # What the host of a virtual machine takes is no program's doing here, and is told apart for each point.
    busy = 100 - spent.idle - getattr(spent, "iowait", 0.0) - getattr(spent, "steal", 0.0)
    errors: dict[float, float] = {}
    overhead = 0.0
    if session.devices > 1:
        for rate in sorted(link_rates):
            session.shape(rate * session.time_scale)
            _, found = lowest_steal(partial(_rate_errors_pct, session, rate), RATE_BUDGET_S)
            if found:
                errors[rate] = max(found.values(), key=abs)
        overhead = _message_overhead_s(session, 1e6 * max(link_rates))
    return Calibration(errors, overhead, busy, idle)


def calibrate_fresh(session: Session, link_rates: Collection[float]) -> Calibration:
    """``calibrate`` of a cluster that nothing has been asked of yet. ClusterError if its data network is not silent."""
    found = calibrate(session, link_rates)
    if found.idle_bytes:
        raise ClusterError(f"the idle data network carried {found.idle_bytes} bytes: something but tensors uses it")
    return found


def lowest_steal(measure: Callable[[], T], budget_s: float) -> tuple[float, T]:
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


def steal_notes(steal_pct: float) -> list[str]:
    """What to note of a figure during which the host took so much of the cores' time: nothing if it was little."""
    return [f"the host took {steal_pct:.0f}% of the cores' time away"] if steal_pct > STEAL_LIMIT_PCT else []


def _message_overhead_s(session: Session, rate_bps: float) -> float:
    """Of an all-gather of small messages, in the median."""
    algorithm = session.all_gather
    stages = session.graph.gather_loads(algorithm, wire_bytes(MESSAGE_BYTES))
    ideal = session.graph.stages_s(stages, rate_bps)
    return max(0.0, statistics.median(session.collective_s("all_gather", MESSAGE_BYTES, MESSAGES)) - ideal)


def _rate_errors_pct(session: Session, rate_mbps: float) -> dict[Hop, float]:
    """How far each link is off its rate, each way, by the kernel's counters where there are any.

    A link counts in the first operation that keeps it busy from begin to end. Links that none does are left out: they
    are never what others wait for.
    """
    graph, rate_bps = session.graph, 1e6 * rate_mbps
    errors: dict[Hop, float] = {}
    for peers, stages in _operations(session):
        unit_s = graph.stages_s(stages, rate_bps)
        busy_s = graph.busy_s([load for stage in stages for load in stage], rate_bps)
        full = {hop for hop, seconds in busy_s.items() if seconds >= FULL_SHARE * unit_s} - set(errors)
        if full:
            size = round(RATE_S / unit_s)
            expected = {hop: wire_bytes(size) * busy_s[hop] * graph.share[hop] * rate_bps / 8 for hop in full}
            rates = _rates_bps(session, peers, size, expected)
            errors |= {hop: 100 * (rates[hop] / (graph.share[hop] * rate_bps) - 1) for hop in full}
    return errors


def _operations(session: Session) -> Iterator[tuple[list[list[int]] | None, list[list[Load]]]]:
    """(peers of each rank, None for an all-gather; the loads of its stages, in messages) of what fills links."""
    yield None, session.graph.gather_loads(session.all_gather, 1.0)
    subnets = session.graph.subnets
    subnet_of = {rank: subnet for subnet in subnets for rank in subnet}
    for within in (True, False) if len(subnets) > 1 else ():
        others = [[(rank + step) % session.devices for step in range(1, session.devices)] for rank in sorted(subnet_of)]
        peers = [[p for p in of if (p in subnet_of[rank]) == within] for rank, of in enumerate(others)]
        yield peers, [[(rank, peer, 1.0) for rank, of in enumerate(peers) for peer in of]]


def _rates_bps(
    session: Session, peers: list[list[int]] | None, size: int, expected_bytes: dict[Hop, float]
) -> dict[Hop, float]:
    """The rate of each hop of ``expected_bytes`` while ranks exchange messages of ``size`` bytes.

    expected_bytes: what it carries in one exchange, where nobody counts.
    """
    operation = "all_gather" if peers is None else "exchange"
    session.rank_times(operation, size, 1, peers)
    before = session.network.carried_bytes()
    spans = session.rank_times(operation, size, RATE_REPEATS, peers)
    after = session.network.carried_bytes()
    carried = expected_bytes
    if before is not None and after is not None:
        carried = {hop: (after[hop] - before[hop]) / RATE_REPEATS for hop in expected_bytes}
    of_rank = [statistics.median(end - begin for begin, end in rank) for rank in spans]

    def seconds(hop: Hop) -> float:
        """Of the device at its end, or else at its beginning; between switches of all."""
        ranks = [int(node[1:]) for node in reversed(hop) if node.startswith("h")]
        return of_rank[ranks[0]] if ranks else max(of_rank)

    return {hop: 8 * count / seconds(hop) for hop, count in carried.items()}
