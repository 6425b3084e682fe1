"""ASTRA (arXiv 2505.19342): vector-quantized communication and mixed-precision attention."""
