"""Fidelity of the emulated links: measured times of known operations against their ideal times.

The ideal time of an operation (link_operations.py) is the time of its busiest link. A repeat is degraded if it takes
longer than that by more than TOLERANCE plus a small time for each message, if it is faster than the calibration limit
allows, or if the link rate is off by more than that limit. One exception: in an incast whose queue drops packets, the
delay is a result and not a fault. The excess time of a point is CPU time of this machine, which time_scale does not
multiply. The row therefore reports the time_scale that would bring the point within the tolerance.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments.measurement.calibration import attempts, calibrate, calibrate_fresh, steal_notes
from experiments.measurement.fidelity_checks import RATE_LIMIT_PCT
from experiments.measurement.link_operations import LinkOperation
from experiments.measurement.manifest import STAYS, Manifest, print_completed
from experiments.measurement.recovery import RecoveringSession
from testbed.config.schema import FidelityConfig
from testbed.errors import ClusterError, CommError, EnvironmentFault
from testbed.progress import Steps, steps
from testbed.results.run_folder import RunFolder
from testbed.results.schema import FIDELITY
from testbed.session import Session
from topologies.link_graph import Hop

TOLERANCE = 0.10  # share of the ideal time
RATE_FROM_S = 0.2  # a link's rate is computed only from operations that keep it busy at least this long


def run(config: FidelityConfig, backend: str, folder: RunFolder) -> int:
    """Measure all points that are not completed, and write rows after each. Returns the number of failed points."""
    completed = folder.completed(config.retry_failed, config.retry_degraded)
    grid = {
        devices: [m for m in _operations(config, devices) if FIDELITY.key(m.columns) not in completed]
        for devices in config.devices
    }
    count = sum(map(len, grid.values()))
    print_completed(folder, config, count)
    if not count:
        return 0
    manifest = Manifest(folder, config)
    failed = 0
    for devices, operations in grid.items():
        if not operations:
            continue
        facts: dict[str, Any] = {"devices": devices, "calibration": []}
        with RecoveringSession(config, backend, devices, partial(_begin, config, backend, facts)) as recovering:
            manifest.open_cluster(facts)
            costs = (_cost_s(config, recovering.session, operation) for operation in operations)
            with steps(f"{len(operations)} points", sum(costs)) as shown:
                failed += _measure_all(config, backend, folder, recovering, operations, shown)
            facts["calibration"].append(vars(calibrate(recovering.session, _link_rates(recovering.session, config))))
            manifest.close_cluster(facts)
    return failed


def _begin(config: FidelityConfig, backend: str, facts: dict[str, Any], session: Session) -> None:
    """Calibrate a fresh cluster."""
    print(f"cluster of {session.devices} devices on {backend}, up in {session.start_s:.1f} s")
    found = calibrate_fresh(session, _link_rates(session, config))
    facts["calibration"].append(vars(found))
    facts |= {"idle_bytes": found.idle_bytes, "network": session.network.describe()}


def _link_rates(session: Session, config: FidelityConfig) -> list[float]:
    """The links' rates in Mbps on this machine's clock."""
    return [rate / session.time_scale for rate in config.rates]


def _operations(config: FidelityConfig, devices: int) -> list[LinkOperation]:
    """The points of one cluster in random order, grouped by link setting so that links are rarely changed."""
    order = random.Random(f"{config.seed}/{devices}")
    links = list(itertools.product(config.shapers, config.rates, config.queues_kb))
    order.shuffle(links)
    found = []
    for shaper, rate, queue in links:
        what = itertools.product(config.patterns, config.sizes_bytes)
        batch = [LinkOperation(pattern, shaper, devices, rate, size, queue) for pattern, size in what]
        order.shuffle(batch)
        found += batch
    return found


def _measure_all(
    config: FidelityConfig,
    backend: str,
    folder: RunFolder,
    recovering: RecoveringSession,
    operations: list[LinkOperation],
    shown: Steps,
) -> int:
    """Measure all points and write their rows. A fault fails only its point. Returns the number of failed points."""
    failed = done = 0
    fixed = {"topology": config.topology.name, "network": backend, "time_scale": config.time_scale}
    fixed["all_gather"] = recovering.session.all_gather
    for link, batch in itertools.groupby(operations, lambda operation: operation.link):
        batch = list(batch)
        costs = {operation: _cost_s(config, recovering.session, operation) for operation in batch}
        try:
            recovering.shape(*link)
        except EnvironmentFault as fault:
            folder.append([m.columns | fixed | {"status": "skipped", "error": str(fault)} for m in batch])
            done += len(batch)
            shown.done(sum(costs.values()), f"{batch[0].shaper}: {len(batch)} points SKIPPED: {fault}")
            continue
        for operation in batch:
            done, begin = done + 1, time.monotonic()
            shown.begin(f"[{done}/{len(operations)}] {operation.label}")
            try:
                rows = [
                    operation.columns | fixed | measured for measured in _measure(config, recovering.session, operation)
                ]
            except (ClusterError, CommError) as fault:
                rows = [operation.columns | fixed | {"status": "failed", "error": str(fault)}]
                failed += 1
                recovering.recover(fault)
                recovering.shape(*link)
            kept = folder.append(rows)
            line = _describe(operation, kept or rows, begin) + ("" if kept else STAYS)
            shown.done(costs[operation], f"[{done}/{len(operations)}] {line}")
    return failed


@dataclass(frozen=True)
class Observed:
    """The repeats of one operation. The counters cover all repeats together and are None where there are none."""

    seconds: list[float]  # of each repeat, from the first device's begin to the last device's end
    carried_bytes: dict[Hop, int] | None
    retransmits: int
    drops: int | None


def _observe(session: Session, operation: LinkOperation, repeats: int) -> Observed:
    """Run the operation."""
    network = session.network
    session.collective_s(operation.pattern, min(operation.size_bytes, 10_000), 1)  # a warm-up
    carried, retransmits, drops = network.carried_bytes(), session.retransmits(), network.dropped_packets()
    seconds = session.collective_s(operation.pattern, operation.size_bytes, repeats)
    carried_after, drops_after = network.carried_bytes(), network.dropped_packets()
    hops = None
    if carried is not None and carried_after is not None:
        hops = {hop: count - carried[hop] for hop, count in carried_after.items()}
    dropped = None if drops is None or drops_after is None else drops_after - drops
    return Observed(seconds, hops, session.retransmits() - retransmits, dropped)


def _measure(config: FidelityConfig, session: Session, operation: LinkOperation) -> Iterable[dict[str, Any]]:
    """The measured columns of each repeat of each attempt. Byte counters are averages over all repeats.

    During high CPU steal, the operation is measured again (``attempts``).
    """
    rate_bps = operation.rate_mbps * 1e6 / session.time_scale
    ideal = operation.ideal_s(session.graph, session.all_gather, rate_bps)
    repeats = max(1, min(config.repeats, int(config.point_budget_s / ideal)))
    made = attempts(lambda: _observe(session, operation, repeats), config.point_budget_s)
    for attempt, (steal_pct, seen) in enumerate(made):
        for row in _measured(session, operation, seen, steal_pct):
            yield row | {"attempt": attempt}


def _measured(session: Session, operation: LinkOperation, seen: Observed, steal_pct: float) -> Iterable[dict[str, Any]]:
    """The measured columns of each repeat of one attempt."""
    rate_bps, repeats = operation.rate_mbps * 1e6 / session.time_scale, len(seen.seconds)
    over = session.graph, session.all_gather
    ideal = operation.ideal_s(*over, rate_bps)
    median = statistics.median(seen.seconds)
    # An incast exists to overflow a queue, so a delay from dropped packets is no fault of the emulation.
    comparable = not (operation.is_incast and seen.drops)
    wire = rate_error = None
    if seen.carried_bytes is not None:
        carried = {hop: count / repeats for hop, count in seen.carried_bytes.items()}
        wire = round(max(carried.values()))
        full = operation.full_hop(*over)
        if comparable and ideal >= RATE_FROM_S and full is not None:
            rate_error = 100 * (8 * carried[full] / median / (session.graph.share[full] * rate_bps) - 1)
    needed = _needed_time_scale(operation, median, ideal, rate_error, session.time_scale) if comparable else None
    to_ms = 1e3 / session.time_scale
    for repeat, elapsed in enumerate(seen.seconds):
        notes = _breaches(operation, elapsed, ideal, rate_error) if comparable else []
        if notes:
            notes += steal_notes(steal_pct)
        yield {
            "repeat": repeat,
            "time_ms": to_ms * elapsed,
            "ideal_ms": to_ms * ideal,
            "payload_ms": to_ms * operation.payload_s(*over, rate_bps),
            "rate_error_pct": rate_error,
            "wire_bytes": wire,
            "retransmits": seen.retransmits,
            "drops": seen.drops,
            "burst_credit_bytes": session.burst_credit_bytes,
            "needed_time_scale": needed,
            "steal_pct": steal_pct,
            "fidelity": "degraded" if notes else "ok",
            "fidelity_note": "; ".join(notes),
            "status": "ok",
            "error": "",
        }


def _breaches(operation: LinkOperation, elapsed_s: float, ideal_s: float, rate_error_pct: float | None) -> list[str]:
    """The faults of one repeat, in words; empty if there is none."""
    found = []
    if elapsed_s > (1 + TOLERANCE) * ideal_s + operation.slack_s() or _is_too_fast(elapsed_s, ideal_s):
        found.append(f"{elapsed_s / ideal_s:.2f} times the ideal")
    if rate_error_pct is not None and abs(rate_error_pct) > RATE_LIMIT_PCT:
        found.append(f"link rate off by {rate_error_pct:+.1f}%")
    return found


def _is_too_fast(elapsed_s: float, ideal_s: float) -> bool:
    """Whether links exceeded their rate. Hosts and transport only add time, so this has no extra tolerance."""
    return elapsed_s < (1 - RATE_LIMIT_PCT / 100) * ideal_s


def _needed_time_scale(
    operation: LinkOperation, elapsed_s: float, ideal_s: float, rate_error_pct: float | None, time_scale: float
) -> float | None:
    """The smallest time_scale, a power of two, with which the operation would not be degraded; None if none would help.

    It is 1 where the links keep up in real time. A link that is too fast stays so at any time_scale, because its token
    bucket slows down with it.
    """
    if _is_too_fast(elapsed_s, ideal_s) or (rate_error_pct or 0) > RATE_LIMIT_PCT:
        return None
    late = time_scale * (elapsed_s - ideal_s - operation.slack_s()) / (TOLERANCE * ideal_s)
    slow = time_scale * -(rate_error_pct or 0) / RATE_LIMIT_PCT
    return 2.0 ** max(0, math.ceil(math.log2(max(late, slow, 1e-9))))


def _cost_s(config: FidelityConfig, session: Session, operation: LinkOperation) -> float:
    """Estimated seconds of a point, for the progress bar."""
    ideal = operation.ideal_s(session.graph, session.all_gather, operation.rate_mbps * 1e6 / config.time_scale)
    return 0.2 + max(ideal, min(config.point_budget_s, ideal * config.repeats))


def _describe(operation: LinkOperation, rows: list[dict[str, Any]], begin_s: float) -> str:
    """One line about a finished point."""
    if rows[0]["status"] != "ok":
        return f"{operation.label}: {rows[0]['status'].upper()}: {rows[0]['error']}"
    median = statistics.median(row["time_ms"] for row in rows)
    marks = "" if all(row["fidelity"] == "ok" for row in rows) else ", degraded"
    spent, ratio = time.monotonic() - begin_s, median / rows[0]["ideal_ms"]
    return f"{operation.label}: {median:.2f} ms, {ratio:.2f} x ideal{marks} ({spent:.1f} s)"
