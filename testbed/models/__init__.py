"""Plain PyTorch models. No module here knows about devices, links or quantization."""
