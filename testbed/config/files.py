"""Reads the files of conf/ as text: what each value is written as, and whether it is the same on the command line.

YAML 1.1 reads 010 as 8, 1:30 as 90 and ``on`` as true. Hydra's grammar does not. Such values are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from testbed.config import fields
from testbed.config.words import REFERENCE, TEXT_KEYS, read_scalar
from testbed.errors import ConfigError, shown

TAG = "tag:yaml.org,2002:"
OF_HYDRA = ("defaults", "hydra")  # keys at the top of a file whose values are Hydra's
PRESETS = "presets"


@dataclass(frozen=True)
class Written:
    """A value as it stands in a file. key: dotted; items of a list have the key of the list. plain: without quotes."""

    key: str
    text: str
    plain: bool
    line: int


def place(path: Path, line: int | None = None) -> str:
    """``conf/GROUP/NAME.yaml, line N`` for messages."""
    return f"conf/{path.relative_to(fields.CONF).as_posix()}{f', line {line}' if line else ''}"


def written(path: Path) -> list[Written]:
    """The values of a file of conf/, in their order. Raises ConfigError for a file that is not a mapping in UTF-8."""
    try:
        return _parsed(path, path.read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise _fault(path, f"must be a file with text in UTF-8: {error}") from None


@cache
def _parsed(path: Path, text: str) -> list[Written]:
    if text.startswith("\ufeff"):
        raise _fault(path, "must be saved in UTF-8 without a byte order mark")
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise _fault(path, "must have lines KEY: VALUE")
        return list(_values(path, root, "", set()))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise _fault(path, f"is not YAML: {error.problem}", line) from None
    except yaml.YAMLError as error:
        raise _fault(path, f"is not YAML: {error}") from None
    except RecursionError:
        raise _fault(path, "must not have so many lists and mappings inside each other") from None


def _values(path: Path, node: yaml.Node, key: str, seen: set[int]) -> Iterator[Written]:
    """The values below a node, which has this key."""
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise _fault(path, f"must not repeat a value by an alias: {key}", line)
    seen.add(id(node))
    if node.tag.removeprefix(TAG) not in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq"):
        raise _fault(path, f"must not have tags or merged keys: {node.tag}", line)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _values(path, item, key, seen)
    elif isinstance(node, yaml.MappingNode):
        known = set()
        for name, value in node.value:
            at = name.start_mark.line + 1
            if name.tag != f"{TAG}str":
                raise _fault(path, f"must have texts as keys: {getattr(name, 'value', name.tag)}", at)
            if name.value in known:
                raise _fault(path, f"must not have the same key twice: {name.value}", at)
            known.add(name.value)
            inner = f"{key}.{name.value}" if key else name.value
            if "." in name.value and not key.startswith(PRESETS):
                raise _fault(path, f"must not have a dot in a key; write a section: {name.value}", at)
            if inner not in OF_HYDRA:
                yield from _values(path, value, inner, seen)
    elif isinstance(node, yaml.ScalarNode):
        yield Written(key, node.value, not node.style, line)


def check_alike(path: Path, value: Written, key: str) -> None:
    """Raise ConfigError for a value that YAML and the command line read differently. key: in the configuration."""
    if "${" in value.text:
        raise ConfigError(key, value.text, REFERENCE, place(path, value.line))
    if not value.plain:
        return
    try:
        in_yaml = _in_yaml(value.text)
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(key, value.text, f"cannot be read: {error}", place(path, value.line)) from None
    typed = value.text if key in TEXT_KEYS else _typed(value.text)
    alike = type(in_yaml) is type(typed) and in_yaml == typed
    if key in TEXT_KEYS:  # 12 becomes a text again, and null is left to the rule of the key
        alike |= in_yaml is None or (type(in_yaml) is int and shown(in_yaml) == value.text)
    if not alike:
        readings = [f"the text {it}" if isinstance(it, str) else shown(it) for it in (in_yaml, typed)]
        allowed = f"YAML reads it as {readings[0]}, the command line as {readings[1]}; "
        allowed += f'write {shown(in_yaml)}, or "{value.text}" in quotes'
        raise ConfigError(key, value.text, allowed, place(path, value.line))


@cache
def _in_yaml(text: str) -> Any:
    """The value of a plain scalar in a file."""
    try:
        loaded = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))
    except yaml.YAMLError:  # a text that is plain in brackets only, as [-]
        return text
    assert isinstance(loaded, dict)
    return loaded["value"]


_typed = cache(read_scalar)


def _fault(path: Path, reason: str, line: int | None = None) -> ConfigError:
    """The error of a file that cannot be used. It names the choice of the file."""
    group, _, name = path.relative_to(fields.CONF).with_suffix("").as_posix().partition("/")
    return ConfigError(group, name, reason, place(path, line))
