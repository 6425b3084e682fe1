"""Columns of what disturbed one repeat. Their limits are in experiments/measurement/fidelity_checks.py."""

from __future__ import annotations

from testbed.results.column import COUNT, MEASURED, NUMBER, Column

DISTURBANCE_COLUMNS = (
    Column(
        "foreign_cpu_pct",
        NUMBER,
        "processor time of other programs and of the kernel's threads during this repeat, of all cores; without what "
        "the kernel does for packets and timers",
        "%",
        filled=MEASURED,
    ),
    Column(
        "throttled_ms",
        NUMBER,
        "time of this machine for which a CPU quota stopped the run during this repeat",
        "ms",
        filled=MEASURED,
    ),
    Column(
        "foreign_bytes",
        COUNT,
        "what a link carried during this repeat beyond what ranks sent, with packet headers and acknowledgements, or "
        "less if below 0; 0 within a few acknowledgements; missing on loopback",
        "bytes",
        filled=MEASURED,
    ),
    Column(
        "link_rate_error_pct",
        NUMBER,
        "how far a link's rate during this repeat was above its setting while bytes waited, of the link with the "
        "largest error; missing if bytes waited for less than 0.1 s of this machine, as they do for less than 1.25 MB "
        "at 100 Mbps, and on loopback",
        "%",
        filled=MEASURED,
        bounded=False,
    ),
    Column(
        "link_burst_bytes",
        COUNT,
        "most bytes that a link let through beyond its rate during this repeat; its token bucket at most; missing on "
        "loopback",
        "bytes",
        filled=MEASURED,
    ),
    Column(
        "retransmits", COUNT, "packets that all ranks sent again during this repeat, as TCP counts", filled=MEASURED
    ),
    Column(
        "out_of_order",
        COUNT,
        "packets that came before earlier ones during this repeat, as TCP counts, of all ranks",
        filled=MEASURED,
    ),
)
