"""How faithful are the emulated links? Messages of known size against the time that they should take.

The ideal of an operation is the bytes that its busiest link has to carry, with frame and packet headers, over the
rate. A repeat is degraded if it misses the ideal by more than TOLERANCE and a moment for each message, or the rate by
more than the calibration allows. What a point takes too long is this machine's time, which time_scale does not
stretch, so the row says which time_scale would keep it within the tolerance.
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

from experiments.calibration import RATE_LIMIT_PCT, calibrate
from experiments.lasting import LastingSession
from experiments.manifest import Manifest, print_settled
from testbed.comm.frame import HEADER_BYTES
from testbed.comm.pacing import wire_bytes
from testbed.errors import ClusterError, CommError, EnvironmentFault
from testbed.progress import Steps, steps
from testbed.records import RunFolder
from testbed.rows import FIDELITY
from testbed.schema import FidelityConfig
from testbed.session import Session

TOLERANCE = 0.10  # of the ideal
SLACK_S, MESSAGE_SLACK_S = 1e-3, 0.5e-3  # beyond its bytes: an operation at least, and each message of it
RATE_FROM_S = 0.2  # a link's rate can be told from operations whose bytes keep it busy for so long


@dataclass(frozen=True)
class Message:
    """A point: one operation on ``devices`` devices, ``size_bytes`` from each, on links of ``rate_mbps``."""

    pattern: str
    shaper: str
    devices: int
    rate_mbps: float
    size_bytes: int

    @property
    def columns(self) -> dict[str, Any]:
        """What identifies this point in a row."""
        return vars(self)

    @property
    def label(self) -> str:
        """For people."""
        return (
            f"{self.pattern} of {self.size_bytes:,} B, {self.devices} devices, {self.rate_mbps:g} Mbps, {self.shaper}"
        )

    def messages(self) -> list[int]:
        """Payload of each message that the busiest link delivers, one after another."""
        others = self.devices - 1
        if self.pattern == "all_gather":
            return [self.size_bytes] * others
        if self.pattern == "all_reduce":  # twice round the ring, a share of the numbers at a time
            return [4 * -(-self.size_bytes // 4 // self.devices)] * 2 * others
        return [self.size_bytes]

    def ideal_s(self, rate_bps: float) -> float:
        """Seconds on a perfect link: payloads, frame headers and packet headers."""
        return 8 * sum(wire_bytes(HEADER_BYTES + size) for size in self.messages()) / rate_bps

    def slack_s(self) -> float:
        """What hosts and transport may take beyond the link's time."""
        return max(SLACK_S, MESSAGE_SLACK_S * len(self.messages()))

    def payload_s(self, rate_bps: float) -> float:
        """Seconds if headers cost nothing, which is what cost models count."""
        return 8 * sum(self.messages()) / rate_bps


def run(config: FidelityConfig, backend: str, folder: RunFolder) -> int:
    """Measure what is not settled yet and write rows after each point. Returns the number of points that failed."""
    settled = folder.settled(config.retry_failed)
    grid = {
        devices: [m for m in _messages(config, devices) if FIDELITY.key(m.columns) not in settled]
        for devices in config.devices
    }
    count = sum(map(len, grid.values()))
    print_settled(folder, config, count)
    if not count:
        return 0
    manifest = Manifest(folder, config)
    failed = 0
    for devices, messages in grid.items():
        if not messages:
            continue
        facts: dict[str, Any] = {"devices": devices, "calibration": []}
        with LastingSession(config, backend, devices, partial(_begin, config, backend, facts)) as lasting:
            manifest.open_cluster(facts)
            with steps(f"{len(messages)} points", sum(_cost_s(config, message) for message in messages)) as shown:
                failed += _measure_all(config, backend, folder, lasting, messages, shown)
            facts["calibration"].append(vars(calibrate(lasting.session, config.rates)))
            manifest.close_cluster(facts)
    return failed


def _begin(config: FidelityConfig, backend: str, facts: dict[str, Any], session: Session) -> None:
    """Calibrate a fresh cluster."""
    print(f"cluster of {session.devices} devices on {backend}, up in {session.start_s:.1f} s")
    facts["calibration"].append(vars(calibrate(session, config.rates)))
    facts |= {"idle_bytes": session.assert_silent(), "network": session.network.describe()}


def _messages(config: FidelityConfig, devices: int) -> list[Message]:
    """The points of one cluster: in random order within each rate and shaper, so that links are set rarely."""
    order = random.Random(f"{config.seed}/{devices}")
    links = [(shaper, rate) for shaper in config.shapers for rate in config.rates]
    order.shuffle(links)
    found = []
    for shaper, rate in links:
        batch = [Message(p, shaper, devices, rate, size) for p in config.patterns for size in config.sizes_bytes]
        order.shuffle(batch)
        found += batch
    return found


def _measure_all(
    config: FidelityConfig,
    backend: str,
    folder: RunFolder,
    lasting: LastingSession,
    messages: list[Message],
    shown: Steps,
) -> int:
    """Rows of all points; a fault costs its point. Returns the number of points that failed."""
    failed = done = 0
    for (shaper, rate_mbps), batch in itertools.groupby(messages, lambda message: (message.shaper, message.rate_mbps)):
        batch = list(batch)
        fixed = {"topology": config.topology.name, "network": backend, "time_scale": config.time_scale}
        try:
            lasting.shape(rate_mbps, shaper)
        except EnvironmentFault as fault:
            folder.append([m.columns | fixed | {"status": "skipped", "error": str(fault)} for m in batch])
            done += len(batch)
            shown.done(sum(_cost_s(config, m) for m in batch), f"{shaper}: {len(batch)} points SKIPPED: {fault}")
            continue
        for message in batch:
            done, begin = done + 1, time.monotonic()
            shown.begin(f"[{done}/{len(messages)}] {message.label}")
            try:
                rows = [message.columns | fixed | measured for measured in _measure(config, lasting.session, message)]
            except (ClusterError, CommError) as fault:
                rows = [message.columns | fixed | {"status": "failed", "error": str(fault)}]
                failed += 1
                lasting.mend(fault)
                lasting.shape(rate_mbps, shaper)
            folder.append(rows)
            shown.done(_cost_s(config, message), f"[{done}/{len(messages)}] {_describe(message, rows, begin)}")
    return failed


def _measure(config: FidelityConfig, session: Session, message: Message) -> Iterable[dict[str, Any]]:
    """What was measured, for each repeat; counters are of all repeats together, shared out."""
    rate_bps = message.rate_mbps * 1e6 / session.time_scale
    ideal = message.ideal_s(rate_bps)
    repeats = max(1, min(config.repeats, int(config.point_budget_s / ideal)))
    session.collective(message.pattern, min(message.size_bytes, 10_000), 1)  # a warm-up
    before = session.network.delivered_bytes(), session.retransmits(), session.network.dropped_packets()
    spans = session.rank_times(message.pattern, message.size_bytes, repeats)
    after = session.network.delivered_bytes(), session.retransmits(), session.network.dropped_packets()
    seconds = [max(end for _, end in ranks) - min(begin for begin, _ in ranks) for ranks in zip(*spans, strict=True)]
    wire = None
    if before[0] is not None and after[0] is not None:
        wire = max(end - begin for begin, end in zip(before[0], after[0], strict=True)) / repeats
    rate_error = None
    if wire is not None and ideal >= RATE_FROM_S:
        rate_error = 100 * (8 * wire / statistics.median(seconds) / rate_bps - 1)
    dropped = None if before[2] is None or after[2] is None else after[2] - before[2]
    needed = _needed_time_scale(message, statistics.median(seconds), ideal, rate_error, session.time_scale)
    to_ms = 1e3 / session.time_scale
    for repeat, elapsed in enumerate(seconds):
        notes = _breaches(message, elapsed, ideal, rate_error)
        yield {
            "repeat": repeat,
            "time_ms": to_ms * elapsed,
            "ideal_ms": to_ms * ideal,
            "payload_ms": to_ms * message.payload_s(rate_bps),
            "rate_error_pct": rate_error,
            "wire_bytes": None if wire is None else round(wire),
            "retransmits": after[1] - before[1],
            "drops": dropped,
            "free_burst_bytes": session.free_burst_bytes,
            "needed_time_scale": needed,
            "fidelity": "degraded" if notes else "ok",
            "fidelity_note": "; ".join(notes),
            "status": "ok",
            "error": "",
        }


def _breaches(message: Message, elapsed_s: float, ideal_s: float, rate_error_pct: float | None) -> list[str]:
    """What is wrong with one operation, in words."""
    found = []
    if abs(elapsed_s - ideal_s) > TOLERANCE * ideal_s + message.slack_s():
        found.append(f"{elapsed_s / ideal_s:.2f} times the ideal")
    if rate_error_pct is not None and abs(rate_error_pct) > RATE_LIMIT_PCT:
        found.append(f"link rate off by {rate_error_pct:+.1f}%")
    return found


def _needed_time_scale(
    message: Message, elapsed_s: float, ideal_s: float, rate_error_pct: float | None, time_scale: float
) -> float | None:
    """The least power of two by which links would have to be slower for the promise to hold; None if none would help.

    1 where the links keep up in real time. A link that is too fast owes it to its bucket, which slows down with it.
    """
    if elapsed_s - ideal_s < -TOLERANCE * ideal_s - message.slack_s() or (rate_error_pct or 0) > RATE_LIMIT_PCT:
        return None
    late = time_scale * (elapsed_s - ideal_s - message.slack_s()) / (TOLERANCE * ideal_s)
    slow = time_scale * -(rate_error_pct or 0) / RATE_LIMIT_PCT
    return 2.0 ** max(0, math.ceil(math.log2(max(late, slow, 1e-9))))


def _cost_s(config: FidelityConfig, message: Message) -> float:
    """About how long a point takes, for the progress bar."""
    ideal = message.ideal_s(message.rate_mbps * 1e6 / config.time_scale)
    return 0.2 + max(ideal, min(config.point_budget_s, ideal * config.repeats))


def _describe(message: Message, rows: list[dict[str, Any]], begin_s: float) -> str:
    """One line about a finished point."""
    if rows[0]["status"] != "ok":
        return f"{message.label}: {rows[0]['status'].upper()}: {rows[0]['error']}"
    median = statistics.median(row["time_ms"] for row in rows)
    marks = "" if all(row["fidelity"] == "ok" for row in rows) else ", degraded"
    spent, ratio = time.monotonic() - begin_s, median / rows[0]["ideal_ms"]
    return f"{message.label}: {median:.2f} ms, {ratio:.2f} x ideal{marks} ({spent:.1f} s)"
