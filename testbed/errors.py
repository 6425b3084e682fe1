"""Errors for users. Each message is one line that says what to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_VALUE = 200  # a message repeats this many characters of a user's value at most


class TestbedError(Exception):
    """Base class of the testbed's own errors. The message becomes one printable line, whatever it quotes."""

    __test__ = False  # the name starts with "Test"; pytest must not collect it

    def __init__(self, message: str):
        super().__init__(printable(message.replace("\n", " ")))


class ConfigError(TestbedError):
    """A configuration value that is not allowed. The message names the key, the value and the allowed values."""

    def __init__(self, key: str, value: object, allowed: str):
        self.key, self.value, self.allowed = key, value, allowed
        shown = printable(str(value))
        shown = shown if len(shown) <= LONGEST_VALUE else f"{shown[:LONGEST_VALUE]}..."
        super().__init__(f"{key}={shown}: {allowed}")

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        return type(self), (self.key, self.value, self.allowed)  # Ray pickles the errors of actors


class EnvironmentFault(TestbedError):
    """The machine lacks something that the run needs. The message names it and how to get it."""


class CommError(TestbedError):
    """A collective failed. ``ranks`` are the missing or misbehaving peers."""

    def __init__(self, message: str, ranks: Iterable[int] = ()):
        self.ranks = tuple(ranks)
        super().__init__(message)


class ClusterError(TestbedError):
    """A node or an actor failed. ``ranks`` are the failed devices. The cluster must be rebuilt."""

    def __init__(self, message: str, ranks: Iterable[int] = ()):
        self.ranks = tuple(ranks)
        super().__init__(message)


def printable(text: str) -> str:
    """The text with line breaks and terminal control characters as escapes, such as ``\\n``."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def nearest(value: str, allowed: Iterable[str]) -> str:
    """``"unknown; did you mean a or b? allowed: a, b, c"`` for a mistyped name."""
    names = sorted(allowed)
    close = difflib.get_close_matches(str(value), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown; {hint}allowed: {', '.join(names) or 'none'}"
