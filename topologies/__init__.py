"""Emulated networks as Mininet topologies, one per file. ``data_topology(devices)`` returns the data network."""
