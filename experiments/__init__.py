"""Experiments: a grid goes in, rows come out. Each module has ``run(config, backend, folder) -> failed points``."""
