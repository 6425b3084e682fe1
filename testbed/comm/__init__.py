"""Collectives over the data network. This package knows bytes and links, not what the tensors mean."""
