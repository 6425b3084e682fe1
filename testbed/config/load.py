"""Reads conf/ and the command line and checks everything before anything is started.

Hydra composes conf/ with the command line. OmegaConf checks types against testbed/config/schema.py. The rules of the
schema check ranges. Methods check that they can divide the model. Every failure is one ConfigError.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from testbed.config import fields
from testbed.config.compose import composed
from testbed.config.cross_checks import check_links, check_methods, check_size, check_together
from testbed.config.device_mix import load_profiles
from testbed.config.fields import choices
from testbed.config.origins import Origins
from testbed.config.paths import expand_paths
from testbed.config.schema import Config, MethodsConfig, schema_of
from testbed.config.words import read_words
from testbed.errors import ConfigError, nearest


def load_config(overrides: list[str]) -> Config:
    """Compose and check an experiment from the words of a command line (``KEY=VALUE``, ``+experiment=NAME``).

    A single value is accepted for a list of one item. Duplicates in a list are dropped. Raises ConfigError, whose
    message has each key and value as it was written, and the file if it was not typed.
    """
    raw, origins = composed(read_words(overrides))
    try:
        return _checked(raw, origins)
    except ConfigError as error:
        raise origins.named(error) from None


def as_written(error: ConfigError, overrides: list[str]) -> ConfigError:
    """The error of a run with these words, with key and value as they were written (see ``load_config``)."""
    try:
        return composed(read_words(overrides))[1].named(error)
    except ConfigError:  # conf/ has changed meanwhile
        return error


def _checked(raw: dict[str, Any], origins: Origins) -> Config:
    """The configuration, which has passed all checks."""
    if raw["runner"] not in choices("runner"):
        raise ConfigError("runner", raw["runner"], nearest(str(raw["runner"]), choices("runner")))
    schema = schema_of(raw["runner"], raw.get("model"))
    with_methods = issubclass(schema, MethodsConfig)
    methods = {name: raw.pop(name, {}) for name in choices("method")} if with_methods else {}
    _refuse_unknown(raw, schema, "", methods)
    _make_lists(raw, schema, "")
    _refuse_misread(raw, schema, "")
    raw["time_scale"] = _scale(raw["time_scale"])
    config = _typed(raw, schema)
    if isinstance(config, MethodsConfig):
        config.profiles = load_profiles(*config.named_profiles(), origins)
        for name, profile in config.profiles.items():
            _check_rules(profile, f"profiles.{name}.")
    _check_rules(config, "")
    expand_paths(config)
    if isinstance(config, MethodsConfig):
        for name in config.methods:
            if name not in methods:
                raise ConfigError("methods", name, nearest(name, methods))
        settings = {name: _method_settings(name, given) for name, given in methods.items()}
        config.settings = {name: settings[name] for name in config.methods}
    check_size(config)
    if config.emulates:
        check_links(config)
    if isinstance(config, MethodsConfig):
        check_methods(config)
    check_together(config)
    return config


def _refuse_unknown(raw: dict[str, Any], schema: type, prefix: str, also: Iterable[str] = ()) -> None:
    """Raise ConfigError for the first key of ``raw`` that ``schema`` lacks. also: further keys to propose."""
    types = get_type_hints(schema)
    known = [f.name for f in dataclasses.fields(schema) if f.name not in ("settings", "profiles")]
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(f"{prefix}{key}", value, nearest(key, [*known, *also]))
        if dataclasses.is_dataclass(types[key]) and isinstance(value, dict):
            _check_kind(value, types[key], key)
            _refuse_unknown(value, types[key], f"{prefix}{key}.")


def _check_kind(section: dict[str, Any], schema: type, key: str) -> None:
    """Raise ConfigError for a section of another runner, for example images where texts are needed."""
    rule = {f.name: f.metadata for f in dataclasses.fields(schema)}.get("name", {})
    if "test" in rule and not rule["test"](section.get("name")):
        raise ConfigError(f"{key}.name", section.get("name"), f"must be {rule['allowed']}")


def _make_lists(raw: dict[str, Any], schema: type, prefix: str) -> None:
    """Turn values of list fields into lists of distinct values, in place and in all sections."""
    for key, kind in get_type_hints(schema).items():
        if get_origin(kind) is list:
            raw[key] = _distinct(f"{prefix}{key}", raw.get(key, []))
        elif dataclasses.is_dataclass(kind) and isinstance(raw.get(key), dict):
            assert isinstance(kind, type)
            _make_lists(raw[key], kind, f"{prefix}{key}.")


def _distinct(key: str, value: Any) -> list[Any]:
    """The distinct values in their order, as a list, also for a single value. Raises ConfigError for nested lists."""
    items = value if isinstance(value, list) else [value]
    for item in items:
        if isinstance(item, list | dict):
            raise ConfigError(key, value, "must be one value or a flat list [a,b]")
    return list({repr(item): item for item in items}.values())


def _refuse_misread(raw: dict[str, Any], schema: type, prefix: str) -> None:
    """Raise ConfigError for what OmegaConf would take for a number or for true: digits of other scripts, and 2."""
    kinds = get_type_hints(schema)
    for f in dataclasses.fields(schema):
        key, value, kind = f"{prefix}{f.name}", raw.get(f.name), kinds[f.name]
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            assert isinstance(kind, type)
            _refuse_misread(value, kind, f"{key}.")
        for item in value if isinstance(value, list) else [value]:
            digits = kind in (int, float, list[int], list[float]) and isinstance(item, str) and not item.isascii()
            if digits or (kind is bool and isinstance(item, int) and item not in (0, 1)):
                raise ConfigError(key, item, f"must be {f.metadata['allowed']}")


def _scale(value: Any) -> Any:
    """time_scale with numbers as floats. OmegaConf does not check its type, because it may be a word."""
    if isinstance(value, list | dict):
        raise ConfigError("time_scale", value, "must be a number from 0.1 to 1000, or auto")
    return float(value) if type(value) is int else value


def _typed(raw: dict[str, Any], schema: type[Config]) -> Config:
    """The configuration as an object of the schema. Raises ConfigError for a missing field or a wrong type."""
    try:
        filled = {**raw, "settings": {}, "profiles": {}} if issubclass(schema, MethodsConfig) else raw
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), filled))
    except OmegaConfBaseException as error:
        key, _, index = (error.full_key or "").rstrip("]").partition("[")
        part_of: type = schema
        value: Any = raw
        rule = "of another type"
        for part in key.split("."):
            value = value.get(part, "") if isinstance(value, dict) else value
            rule = {f.name: f for f in dataclasses.fields(part_of)}[part].metadata.get("allowed", "KEY: VALUE pairs")
            part_of = get_type_hints(part_of)[part]
        value = value[int(index)] if index else value
        if value == MISSING:
            raise ConfigError(key, "", f"is needed; it must be {rule}") from None
        raise ConfigError(key, value, f"must be {rule}") from None
    assert isinstance(config, Config)
    for f in dataclasses.fields(config):  # a second time, because 10 and 10.0 are equal now
        if isinstance(items := getattr(config, f.name), list):
            setattr(config, f.name, list(dict.fromkeys(items)))
    return config


def _check_rules(section: Any, prefix: str) -> None:
    """Raise ConfigError for the first value, or item of a list, that breaks the rule of its field."""
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            _check_rules(value, f"{prefix}{f.name}.")
        elif "test" in f.metadata:
            wrong = [item for item in (value if isinstance(value, list) else [value]) if not f.metadata["test"](item)]
            if wrong or value == []:
                raise ConfigError(f"{prefix}{f.name}", wrong[0] if wrong else value, f"must be {f.metadata['allowed']}")


def _method_settings(name: str, given: Any) -> dict[str, Any]:
    """A method's settings, without duplicates in lists. Raises ConfigError for unknown keys and wrong types."""
    standard = OmegaConf.to_container(OmegaConf.load(fields.CONF / "method" / f"{name}.yaml"))
    assert isinstance(standard, dict)
    if not isinstance(given, dict):
        keys = ", ".join(map(str, standard)) or "none"
        raise ConfigError(name, given, f"must be {name}.KEY=VALUE; keys: {keys}")
    settings: dict[str, Any] = {}
    for key, value in given.items():
        full_key = f"{name}.{key}"
        if key not in standard:
            raise ConfigError(full_key, value, nearest(key, map(str, standard)))
        example = standard[key][0] if isinstance(standard[key], list) else standard[key]
        for item in value if isinstance(value, list) else [value]:
            if type(item) is not type(example) and not (type(item) is int and type(example) is float):
                raise ConfigError(full_key, item, f"must be of type {type(example).__name__}, as {example}")
        if value == []:
            raise ConfigError(full_key, "[]", "must be at least one value")
        settings[key] = _distinct(full_key, value) if isinstance(value, list) else value
    return settings
