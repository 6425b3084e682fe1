"""The words of a command line, ``KEY=VALUE`` and ``+experiment=NAME``, read by Hydra's grammar.

A text (a folder, a name) is taken as it was typed: characters that have a meaning in the grammar need no quotes. Quotes
around a whole text are removed.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from dataclasses import dataclass
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString

from testbed.config import fields
from testbed.config.fields import choices
from testbed.config.schema import SCHEMAS
from testbed.errors import ConfigError, nearest

PARSER = OverridesParser.create()
MOST_BITS = 64  # of a whole number
REFERENCE = "must not contain ${...}; references are not resolved"


def _text_keys(schema: type, prefix: str = "") -> set[str]:
    """The dotted keys of fields that hold one text."""
    kinds = get_type_hints(schema)
    found = {f"{prefix}{f.name}" for f in dataclasses.fields(schema) if kinds[f.name] is str}
    sections = [f.name for f in dataclasses.fields(schema) if dataclasses.is_dataclass(kinds[f.name])]
    return found.union(*(_text_keys(kinds[name], f"{prefix}{name}.") for name in sections))


TEXT_KEYS = frozenset().union(*map(_text_keys, SCHEMAS.values()))


@dataclass(frozen=True)
class Word:
    """One ``KEY=VALUE``. text: what stands behind the first ``=``."""

    key: str
    text: str
    value: Any


@dataclass(frozen=True)
class CommandLine:
    """What a command line sets. groups: the choice of each group of conf/. values: all other words, in their order."""

    groups: dict[str, str]
    values: list[Word]


def read_words(words: list[str]) -> CommandLine:
    """Raises a ConfigError of one line for a word that cannot be read or sets what nobody may set."""
    groups: dict[str, str] = {}
    values: list[Word] = []
    group_names = {path.name for path in fields.CONF.iterdir() if path.is_dir()} - {"method"}
    for typed in words:
        key, equal, text = typed.partition("=")
        key = key.lstrip("+")
        if key.startswith("~"):
            raise ConfigError("override", typed, "keys cannot be removed; it must be KEY=VALUE")
        if not equal or not key:
            raise ConfigError("override", typed, f"cannot be read; it must be KEY=VALUE{_experiment_hint(typed)}")
        if key in group_names:
            groups[key] = as_text(text)
            if groups[key] not in choices(key):
                raise ConfigError(key, text, nearest(groups[key], choices(key)))
        elif key in TEXT_KEYS:
            values.append(Word(key, text, as_text(text)))
        else:
            values.append(Word(key, text, _value(typed, key, text)))
    if "experiment" not in groups:
        for word in values:
            if difflib.get_close_matches(word.key.casefold(), ["experiment"]):
                raise ConfigError(word.key, word.text, f"unknown; did you mean +experiment={word.text}?")
        raise ConfigError("+experiment", "", f"is needed; allowed: {', '.join(choices('experiment'))}")
    for word in values:
        check_plain(word.value, word.key, word.text)
    return CommandLine(groups, values)


def _experiment_hint(typed: str) -> str:
    """For an experiment's name that stands alone: how the word is written."""
    close = difflib.get_close_matches(typed.casefold(), choices("experiment"), n=1)
    return f"; did you mean +experiment={close[0]}?" if close else ""


def as_text(text: str) -> str:
    """The text without quotes around the whole."""
    override = _parsed(f"text={text}") if text[:1] in ("'", '"') else None
    return text if override is None or override.is_sweep_override() else str(override.value())


def read_scalar(text: str) -> Any:
    """The value that this text has on the command line; the text itself if the grammar needs quotes around it."""
    override = _parsed(f"key={text}")
    return text if override is None or override.is_sweep_override() else override.value()


def hydra_words(given: CommandLine) -> list[str]:
    """The same choices and values in words that Hydra's own commands accept."""
    words = []
    for group, name in given.groups.items():
        override = _parsed(f"{group}={name}")
        plain = override is not None and not override.is_sweep_override() and override.value() == name
        choice = name if plain else QuotedString(name, Quote.single).with_quotes()
        words.append(f"{'+' if group == 'experiment' else ''}{group}={choice}")
    for word in given.values:
        text = QuotedString(word.value, Quote.single).with_quotes() if word.key in TEXT_KEYS else word.text
        words.append(f"++{word.key}={text}")
    return words


def _value(typed: str, key: str, text: str) -> Any:
    """The value of a word that is no text and no choice."""
    override = _parsed(typed)
    if override is None and _parsed(f"{key}=") is None:
        raise ConfigError("override", typed, "cannot be read; it must be KEY=VALUE")
    if override is None:
        if text.lstrip()[:1] in ("[", "{"):
            allowed = """a list is written [a,b], and an item with special characters in quotes, as ["a=b",c]"""
        else:
            whole = f"{key}={QuotedString(text, Quote.double).with_quotes()}"
            allowed = f"in a shell, a value with special characters is written {shlex.quote(whole)}"
        raise ConfigError(key, text, f"cannot be read; {allowed}")
    if override.package is not None:
        raise ConfigError("override", typed, "keys cannot be moved; it must be KEY=VALUE")
    if override.is_sweep_override():
        raise ConfigError(
            key, text, f"is not one value; in a shell, a list is written {shlex.quote(f'{key}=[{text}]')}"
        )
    if re.match(r"hydra\b", key):
        raise ConfigError(key, text, "unknown; Hydra's own settings can only be changed in conf/config.yaml")
    if key == "method":
        raise ConfigError(key, text, "unknown; methods are chosen by 'methods=[NAME,...]'")
    return override.value()


def _parsed(typed: str) -> Override | None:
    try:
        return PARSER.parse_override(typed)
    except Exception:  # HydraException; its parser also raises ValueError and RecursionError
        return None


def check_plain(value: Any, key: str, text: str | None = None) -> None:
    """Raise ConfigError for references such as ``${oc.env:HOME}`` and for numbers of more than 64 bits.

    With references to the environment or the time of day, a configuration would differ between machines, and its
    manifest and messages could reveal the environment. text: what was typed, if it is known.
    """
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        check_plain(part, f"{key}.{name}" if key else str(name))
    if isinstance(value, str) and "${" in value:
        raise ConfigError(key, value if text is None else text, REFERENCE)
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ConfigError(key, value if text is None else text, f"must be a number of at most {MOST_BITS} bits")
