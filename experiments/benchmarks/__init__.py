"""Measurements of the testbed itself (make bench, make soak)."""
