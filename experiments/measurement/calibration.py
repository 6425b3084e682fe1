"""Calibration: the real rates and overheads of an emulated network, before and after measurements."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import psutil

from experiments.measurement.fidelity_checks import RATE_LIMIT_PCT
from testbed.comm.pacing import wire_bytes
from testbed.errors import ClusterError
from testbed.results.attempts import STEAL_LIMIT_PCT
from testbed.session import Session
from topologies.link_graph import Hop, Load

RATE_S, RATE_REPEATS = 0.2, 3  # seconds of a transfer that measures a link's rate, and its repeats after a warm-up
MESSAGE_BYTES, MESSAGES = 320, 9  # size of ASTRA's codes of one layer at G = 1, and repeats
FULL_SHARE = 0.95  # a link's rate is measured if the link is busy for this share of the operation
BUSY_LIMIT_PCT = 25.0
ATTEMPTS = 3  # at a measurement, while CPU steal is high
RATE_BUDGET_S = 3.0  # for all attempts at one rate

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """Measured properties of a cluster's links and cores.

    rate_error_pct: for each rate (Mbps, on this machine's clock), the largest error of any link, with both directions
    loaded. message_overhead_s: time of an all-gather of small messages beyond their bits over the rate, on this
    machine's clock. busy_pct: CPU utilization of this machine while the cluster is idle. idle_bytes: bytes on the data
    network during that time; None without counters.
    """

    rate_error_pct: dict[float, float]
    message_overhead_s: float
    busy_pct: float
    idle_bytes: int | None

    def breaches(
        self, link_mbps: float | None, time_scale: float = 1.0, shown: Collection[str] = frozenset()
    ) -> list[str]:
        """The faults of a point, in words; empty if there is none.

        link_mbps: the point's link rate on this machine's clock; None if the point sends nothing. time_scale: of the
        point. shown: columns in which the point's own passes say what happened during them (fidelity_checks.py). Of
        what they show, the calibration is no evidence.
        """
        found = []
        error = 0.0 if link_mbps is None else self.rate_error_pct.get(link_mbps, 0.0)
        if abs(error) > RATE_LIMIT_PCT and "link_rate_error_pct" not in shown:
            enough = time_scale * 2 ** math.ceil(math.log2(abs(error) / RATE_LIMIT_PCT))
            # Slower links need less CPU time. A link that is too fast would be too fast at any time_scale.
            found.append(f"link rate off by {error:+.1f}%" + (f" (try time_scale={enough:g})" if error < 0 else ""))
        if self.busy_pct > BUSY_LIMIT_PCT and "foreign_cpu_pct" not in shown:
            found.append(f"other programs keep {self.busy_pct:.0f}% of the cores busy")
        if self.idle_bytes and "foreign_bytes" not in shown:
            found.append(f"{self.idle_bytes} foreign bytes on the data network")
        return found


def calibrate(session: Session, link_rates: Collection[float]) -> Calibration:
    """Measure a cluster. It takes about a second for each link rate (Mbps, on this machine's clock).

    The links stay at the highest of these rates.
    """
    psutil.cpu_times_percent()  # the next call reports the time since this one
    idle = session.idle_bytes()
    spent = psutil.cpu_times_percent()
    # CPU steal is not caused by programs of this machine. It is reported separately for each point.
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
    """``calibrate`` for a new cluster. ClusterError if its data network carries bytes while it is idle."""
    found = calibrate(session, link_rates)
    if found.idle_bytes:
        raise ClusterError(f"the idle data network carried {found.idle_bytes} bytes: something but tensors uses it")
    return found


def attempts(measure: Callable[[], T], budget_s: float) -> list[tuple[float, T]]:
    """(CPU steal in percent, result of ``measure``) of each attempt.

    CPU steal is the share of CPU time that the host of a virtual machine gave to others. If it is low, there is one
    attempt; otherwise there are up to ATTEMPTS, none of which starts after ``budget_s`` seconds. Whether there is
    another one depends only on CPU steal, never on the result. Steal counts as 0 where the system does not report it.
    """
    made, deadline = [], time.monotonic() + budget_s
    while len(made) < ATTEMPTS and (not made or time.monotonic() < deadline):
        psutil.cpu_times_percent()  # the next call reports the time since this one
        result = measure()
        made.append((getattr(psutil.cpu_times_percent(), "steal", 0.0), result))
        if made[-1][0] <= STEAL_LIMIT_PCT:
            break
    return made


def lowest_steal(measure: Callable[[], T], budget_s: float) -> tuple[float, T]:
    """Of ``attempts``, the one with the lowest CPU steal, for what becomes no row."""
    return min(attempts(measure, budget_s), key=lambda attempt: attempt[0])


def steal_notes(steal_pct: float) -> list[str]:
    """A note about high CPU steal during a measurement; empty if the steal was low."""
    return [f"CPU steal was {steal_pct:.0f}%"] if steal_pct > STEAL_LIMIT_PCT else []


def _message_overhead_s(session: Session, rate_bps: float) -> float:
    """Median overhead of an all-gather of small messages."""
    algorithm = session.all_gather
    stages = session.graph.gather_loads(algorithm, wire_bytes(MESSAGE_BYTES))
    ideal = session.graph.stages_s(stages, rate_bps)
    return max(0.0, statistics.median(session.collective_s("all_gather", MESSAGE_BYTES, MESSAGES)) - ideal)


def _rate_errors_pct(session: Session, rate_mbps: float) -> dict[Hop, float]:
    """Rate error of each hop, by the kernel's counters where there are any.

    The first operation that keeps a hop busy throughout measures it. Hops that no operation keeps busy are left out,
    because they never limit an operation.
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
    """Operations that keep links busy: (peers of each rank, or None for an all-gather; loads of each stage).

    The unit of a load is one message.
    """
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
    """Bits per second of each hop of ``expected_bytes`` while ranks exchange messages of ``size`` bytes.

    expected_bytes: bytes on each hop in one exchange, used where there are no counters.
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
        """Time of the device at the hop's end, or else at its beginning. Between switches: the longest of all."""
        ranks = [int(node[1:]) for node in reversed(hop) if node.startswith("h")]
        return of_rank[ranks[0]] if ranks else max(of_rank)

    return {hop: 8 * count / seconds(hop) for hop, count in carried.items()}
