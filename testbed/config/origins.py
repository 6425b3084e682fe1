"""Where each value of a configuration was written, so that a message can name what the user wrote, and where."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from testbed.config.words import Word, as_text
from testbed.errors import ConfigError, shown


@dataclass(frozen=True)
class Origin:
    """A value as it was written. key: in the words of its place. where: the file; empty for the command line."""

    key: str
    text: str
    where: str = ""


class Origins:
    """The origins of all keys. A list has one origin for each item."""

    def __init__(self) -> None:
        self._of: dict[str, list[Origin]] = {}

    def set(self, key: str, origins: list[Origin]) -> None:
        """These values replace the earlier ones of the key. ``KEY.0`` adds to those of ``KEY``."""
        parent, _, last = key.rpartition(".")
        if last.isdecimal() and parent in self._of:
            self._of[parent] = [*self._of[parent], *origins]
            return
        self._of = {known: of for known, of in self._of.items() if known != key and not known.startswith(f"{key}.")}
        self._of[key] = origins

    def update(self, origins: dict[str, list[Origin]]) -> None:
        """Set the values of several keys."""
        for key, of in origins.items():
            self.set(key, of)

    def set_word(self, word: Word) -> None:
        """The value of a word of the command line."""
        if isinstance(word.value, dict):
            for key, value in flat(word.value, f"{word.key}."):
                items = value if isinstance(value, list) else [value]
                self.set(key, [Origin(key, shown(item)) for item in items])
        else:
            self.set(word.key, [Origin(word.key, text) for text in _items(word)])

    def named(self, error: ConfigError) -> ConfigError:
        """The error in the words of the user: key and value as they were written, and the file that has them."""
        if error.where:
            return error
        found = self._of.get(error.key, [])
        if isinstance(error.value, dict):
            inner = [of[-1] for key, of in self._of.items() if key.startswith(f"{error.key}.") and of]
            return _renamed(error, inner[-1]) if inner else error
        for origin in found:
            if _same(error.value, origin.text):
                return _renamed(error, origin)
        places = {origin.where for origin in found}
        return ConfigError(error.key, error.value, error.allowed, places.pop()) if len(places) == 1 else error


def flat(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for each value in nested mappings."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _renamed(error: ConfigError, origin: Origin) -> ConfigError:
    return ConfigError(origin.key, origin.text, error.allowed, origin.where)


def _items(word: Word) -> list[str]:
    """The text of each item of a list; of one value, its text without quotes around the whole."""
    if not isinstance(word.value, list):
        return [as_text(word.text)]
    items = [item.strip() for item in word.text.strip()[1:-1].split(",")]
    if len(items) == len(word.value):
        return [as_text(item) for item in items]
    return [shown(item) for item in word.value]  # nested, or with commas in quotes


def _same(value: object, text: str) -> bool:
    """Whether a value may have been written so, apart from the spelling of numbers and of true."""
    if shown(value).casefold() == text.casefold() or shown(value) == os.path.expanduser(text):
        return True
    numbers = _number(shown(value)), _number(text)
    return numbers[0] is not None and numbers[0] == numbers[1]


def _number(text: str) -> float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None
