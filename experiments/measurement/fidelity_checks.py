"""What disturbed a forward pass: columns of its row, and the limits beyond which the row is degraded.

What happened during a repeat decides about that repeat (``testbed.cluster.conditions``, docs/decisions/0020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from testbed.cluster.conditions import Conditions
from testbed.network.backend import Network
from testbed.network.link_watch import TokenBucket
from testbed.results.attempts import FOREIGN_CPU_LIMIT_PCT
from testbed.session import MeasuredPass
from topologies.link_graph import Hop

# The kernel says in hundredths of a second what cores did, so a pass may seem to have had this much more.
ROUNDING_S = 0.02
THROTTLED_LIMIT_PCT = 1.0  # of the pass
RATE_LIMIT_PCT = 3.0
BURST_LIMIT = 1.2  # times the bucket
DISORDER_LIMIT_PCT = 0.1  # of the packets
# Of the packets. TCP sends the last packet of a message again where its acknowledgement takes longer than those of
# short messages before (tail loss probe, RFC 8985), as it does on real slow links: 1 to 5 of 1,000 packets.
RETRANSMIT_LIMIT_PCT = 1.0


@dataclass
class FidelityCheck:
    """Columns of one repeat, and the causes for which it is degraded, in words."""

    columns: dict[str, Any]
    notes: list[str]

    @property
    def shown(self) -> frozenset[str]:
        """The columns that this repeat has a value for."""
        return frozenset(name for name, value in self.columns.items() if value is not None)


def fidelity_checks(passes: Sequence[MeasuredPass], network: Network, sends: bool) -> list[FidelityCheck]:
    """The checks of the repeats of one point. sends: whether its devices send anything.

    A pass may be too short for the kernel's hundredths of a second. Other programs that show only in all repeats
    together degrade all of them.
    """
    all_seen, buckets = [each.conditions for each in passes], network.token_buckets
    refused = [f"the kernel refused a setting of links: {said}" for said in network.refused_settings() if sends]
    busy = _foreign_cpu_note(all_seen)
    checks = []
    for each in passes:
        seen, wire = each.conditions, each.wire_bytes
        own = _foreign_cpu_note([seen])
        together = [f"{busy}, over all repeats"] if busy and not own else []
        columns = {"wire_bytes": None if wire is None else round(wire), **_columns(seen)}
        checks.append(FidelityCheck(columns, [*refused, *together, *([own] if own else []), *_notes(seen, buckets)]))
    return checks


def _columns(seen: Conditions) -> dict[str, Any]:
    return {
        "foreign_cpu_pct": None if seen.foreign_cpu_s is None else _cpu_pct([seen]),
        "throttled_ms": 1e3 * seen.throttled_s,
        "foreign_bytes": None if seen.foreign_bytes is None else seen.foreign_bytes[1],
        "link_rate_error_pct": None if seen.rate_error_pct is None else seen.rate_error_pct[1],
        "link_burst_bytes": None if seen.burst is None else round(seen.burst[1]),
        "retransmits": seen.retransmits,
        "out_of_order": seen.out_of_order,
    }


def _notes(seen: Conditions, buckets: dict[Hop, TokenBucket]) -> list[str]:
    found = []
    if seen.throttled_s > THROTTLED_LIMIT_PCT / 100 * seen.seconds:
        found.append(f"the CPU quota stopped this run for {1e3 * seen.throttled_s:.0f} ms")
    found += [f"link {_name(hop)} is no longer shaped as it was" for hop in seen.changed]
    if seen.foreign_bytes is not None and seen.foreign_bytes[1]:
        hop, count = seen.foreign_bytes
        said = f"{count} foreign bytes" if count > 0 else f"{-count} bytes less than ranks sent"
        found.append(f"link {_name(hop)} carried {said}")
    if seen.rate_error_pct is not None and abs(seen.rate_error_pct[1]) > RATE_LIMIT_PCT:
        hop, error = seen.rate_error_pct
        found.append(f"link rate of {_name(hop)} off by {error:+.1f}% while bytes waited")
    if seen.burst is not None and seen.burst[1] > BURST_LIMIT * buckets[seen.burst[0]].size_bytes:
        hop, size = seen.burst
        found.append(
            f"link {_name(hop)} let {size:,.0f} bytes through at once; its bucket is {buckets[hop].size_bytes:,}"
        )
    return found + _tcp_notes(seen)


def _tcp_notes(seen: Conditions) -> list[str]:
    """Packets that were sent again although no queue dropped them, and packets out of order."""
    if seen.packets is None or seen.retransmits is None or seen.out_of_order is None:
        return []
    found = []
    again = seen.retransmits - (seen.dropped or 0)
    if again > RETRANSMIT_LIMIT_PCT / 100 * seen.packets:
        found.append(f"TCP sent {again} of {seen.packets} packets again, which no queue had dropped")
    if not seen.dropped and seen.out_of_order > DISORDER_LIMIT_PCT / 100 * seen.packets:
        found.append(f"{seen.out_of_order} of {seen.packets} packets came out of order")
    return found


def _foreign_cpu_note(passes: Sequence[Conditions]) -> str:
    """A note if other programs used more of the cores during these passes than the limit; else empty.

    The passes follow each other, so their sum is rounded once.
    """
    known = [seen for seen in passes if seen.foreign_cpu_s is not None]
    used_s = sum(seen.foreign_cpu_s or 0.0 for seen in known) - ROUNDING_S
    if not known or used_s <= FOREIGN_CPU_LIMIT_PCT / 100 * sum(seen.cores * seen.seconds for seen in known):
        return ""
    return f"other programs kept {_cpu_pct(known):.0f}% of the cores busy"


def _cpu_pct(passes: Sequence[Conditions]) -> float:
    return 100 * sum(seen.foreign_cpu_s or 0.0 for seen in passes) / sum(seen.cores * seen.seconds for seen in passes)


def _name(hop: Hop) -> str:
    return "-".join(hop)
