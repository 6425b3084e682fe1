"""Errors that a user meets. Each message is one line that says what to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TestbedError(Exception):
    """Base of every error the testbed raises on purpose."""

    __test__ = False  # the name starts with "Test"; pytest must not collect it


class ConfigError(TestbedError):
    """A configuration value that cannot be used: names the key, the value and what is allowed."""

    def __init__(self, key: str, value: object, allowed: str):
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{key}={value}: {allowed}")


class EnvironmentFault(TestbedError):
    """The machine lacks something that the run needs: names it and how to get it."""


class CommError(TestbedError):
    """A collective failed. ``ranks`` are the peers that are missing or misbehaved."""

    def __init__(self, message: str, ranks: Iterable[int] = ()):
        self.ranks = tuple(ranks)
        super().__init__(message)


class ClusterError(TestbedError):
    """A node or an actor failed. ``ranks`` are the devices concerned; the cluster must be built anew."""

    def __init__(self, message: str, ranks: Iterable[int] = ()):
        self.ranks = tuple(ranks)
        super().__init__(message)


def nearest(value: str, allowed: Iterable[str]) -> str:
    """``"unknown; did you mean a, b? (allowed: a, b, c)"`` for a mistyped name."""
    names = sorted(allowed)
    close = difflib.get_close_matches(str(value), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown; {hint}allowed: {', '.join(names)}"
