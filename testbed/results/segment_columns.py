"""Columns of a segment row: one kind of segment of one method variant, computed and predicted on this machine."""

from __future__ import annotations

from testbed.results.column import COUNT, FLAG, NUMBER, STAMPED, STATUS, TEXT, Column

COLUMNS = (
    *STAMPED,
    Column("variant", TEXT, "the method with its settings", key=True, needed=True),
    Column("devices", COUNT, "devices that the model is divided among", key=True, needed=True),
    Column("tokens", COUNT, "content tokens of one inference", key=True, needed=True),
    Column("segment", TEXT, "what is computed: the method, or the codec, and the function that does it", needed=True),
    Column("model", TEXT, "name of the model", always=True),
    Column("device_profile", TEXT, "the profile of the device that predicts the time", always=True),
    Column("processor", TEXT, "what computed: `cpu` or `cuda`", always=True),
    Column("threads", COUNT, "threads of torch on a CPU", always=True),
    Column("kernels", COUNT, "kernels of the segment by the formulas", always=True),
    Column("macs", COUNT, "multiply-accumulates of the segment", always=True),
    Column("moved_bytes", COUNT, "bytes that its kernels read and write", "bytes", always=True),
    Column("predicted_us", NUMBER, "time by the device profile", "us", always=True),
    Column("measured_us", NUMBER, "median time over all passes, layers and devices", "us", positive=True, needed=True),
    Column("fastest_us", NUMBER, "shortest time", "us", always=True),
    Column("slowest_us", NUMBER, "longest time", "us", always=True),
    Column("runs", COUNT, "how often it was measured", always=True),
    Column("computes", FLAG, "false for sums that the transport has added up before the segment", always=True),
    Column("steal_pct", NUMBER, "CPU steal time during the passes: part of the cores' time that the host took", "%"),
    Column("foreign_pct", NUMBER, "processor time of other programs during the passes, of all cores", "%"),
    *STATUS,
)
