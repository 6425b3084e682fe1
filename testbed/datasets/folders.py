"""Which entries of a user's folder are data."""

from __future__ import annotations

from pathlib import Path

SYSTEM_NAMES = frozenset({"__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini", "lost+found", "@eaDir"})


def is_data(path: Path) -> bool:
    """False for hidden names, as ``.ipynb_checkpoints``, and for names that operating systems write by themselves."""
    return not path.name.startswith(".") and path.name not in SYSTEM_NAMES
