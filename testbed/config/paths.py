"""Paths of a configuration: ``~`` at the beginning is the home folder, which shells do not fill in behind ``=``."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from typing import Any

from testbed.errors import ConfigError

NOT_IN_PATHS = ("Cc", "Cs", "Zl", "Zp")  # categories: controls, bytes that are not UTF-8, line and paragraph separators


def expand_paths(section: Any, prefix: str = "") -> None:
    """Replace ``~`` in all paths of a configuration, in place. Raises ConfigError for a path that cannot be used."""
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            expand_paths(value, f"{prefix}{f.name}.")
        elif f.metadata.get("path"):
            setattr(section, f.name, _expanded(f"{prefix}{f.name}", value))


def _expanded(key: str, path: str) -> str:
    if any(unicodedata.category(letter) in NOT_IN_PATHS for letter in path):
        raise ConfigError(key, path, "must be a path in UTF-8 without control characters")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        name = path.partition("/")[0]
        raise ConfigError(key, path, f"there is no home folder {name}; a folder of this name here is ./{name}")
    return expanded
