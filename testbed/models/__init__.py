"""Plain PyTorch models. Nothing here knows of devices, links or quantization."""
