"""Ray inside the emulated network: a node per device, an actor pinned to each."""
