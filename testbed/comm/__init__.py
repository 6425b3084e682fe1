"""Collectives over the data network. This package knows bytes and links, not the meaning of tensors."""
