"""Columns of a fidelity row: one repeat of one operation over links with a known rate."""

from __future__ import annotations

from testbed.results.column import COUNT, FIDELITY_COLUMNS, NUMBER, STAMPED, STATUS, TEXT, Column

COLUMNS = (
    *STAMPED,
    Column("pattern", TEXT, "operation: which devices send to which", key=True, needed=True),
    Column("shaper", TEXT, "what shapes the links: `tbf`, `tclink` or `netem`", key=True, needed=True),
    Column("devices", COUNT, "emulated devices", key=True, needed=True),
    Column(
        "rate_mbps", NUMBER, "rate of every data link in each direction", "Mbps", key=True, positive=True, needed=True
    ),
    Column("size_bytes", COUNT, "bytes that each device contributes to the operation", "bytes", key=True, needed=True),
    Column("queue_kb", NUMBER, "length of switch queues", "KB", key=True),
    Column("topology", TEXT, "how the devices are linked", always=True),
    Column("all_gather", TEXT, "all-gather algorithm; what `auto` chose"),
    Column("network", TEXT, "network backend", always=True),
    Column("time_scale", NUMBER, "factor by which the links ran slower than `rate_mbps`", positive=True),
    Column("repeat", COUNT, "0, 1, ...; tables show medians over repeats"),
    Column(
        "time_ms", NUMBER, "from the first device's start to the last device's end", "ms", positive=True, needed=True
    ),
    Column("ideal_ms", NUMBER, "time on ideal links, with frame and packet headers", "ms", always=True, positive=True),
    Column("payload_ms", NUMBER, "time on ideal links, without headers", "ms"),
    Column("rate_error_pct", NUMBER, "how far the busiest link's measured rate is above its nominal rate", "%"),
    Column("wire_bytes", COUNT, "carried in one direction by the link that carries most, with headers", "bytes"),
    Column("retransmits", COUNT, "TCP segments that were sent again, in all repeats together"),
    Column("drops", COUNT, "packets that full queues dropped, in all repeats together"),
    Column("burst_credit_bytes", COUNT, "bytes that an idle link lets pass at once", "bytes"),
    Column("needed_time_scale", NUMBER, "time scale at which this machine would stay within the tolerance"),
    *FIDELITY_COLUMNS,
    *STATUS,
)
