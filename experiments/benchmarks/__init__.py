"""Benchmarks of the testbed itself (make bench, make soak)."""
