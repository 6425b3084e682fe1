"""Emulated networks: which links join the devices, and the Mininet topology of these links."""
