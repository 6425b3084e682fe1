"""Training with vector-quantized communication, on devices simulated in one process."""
