"""ASTRA: vector-quantised tokens, mixed-precision attention (arXiv 2505.19342)."""
