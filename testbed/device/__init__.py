"""One emulated device: its speed, its clock, its share of the work, and its traffic counters."""
