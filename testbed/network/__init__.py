"""Emulated networks: hosts, shaped links, and the sandbox of a run. Nothing here depends on models."""
