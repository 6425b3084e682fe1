"""Emulated networks: links, shaping, sandbox. Nothing here knows of models."""
