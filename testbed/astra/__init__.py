"""ASTRA: vector-quantized tokens, mixed-precision attention (arXiv 2505.19342)."""
