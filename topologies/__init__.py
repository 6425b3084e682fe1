"""Emulated networks as Mininet topologies."""
