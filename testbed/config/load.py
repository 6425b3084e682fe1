"""Reads conf/ and the command line and checks everything before anything is started.

Hydra composes conf/ with the command line. OmegaConf checks types against testbed/config/schema.py. The rules of the
schema check ranges. Methods check that they can divide the model. Every failure is one ConfigError.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from testbed.config.cross_checks import check_links, check_methods, check_together
from testbed.config.device_mix import load_profiles
from testbed.config.fields import CONF, choices
from testbed.config.schema import Config, LatencyConfig, schema_of
from testbed.errors import ConfigError, nearest


def load_config(overrides: list[str]) -> Config:
    """Compose and check an experiment from the words of a command line (``KEY=VALUE``, ``+experiment=NAME``).

    A single value is accepted for a list of one item. Duplicates in a list are dropped. Raises ConfigError.
    """
    raw = _with_preset(_checked_overrides(overrides))
    schema = schema_of(raw["runner"], raw.get("model"))
    with_methods = issubclass(schema, LatencyConfig)
    methods = {name: raw.pop(name, {}) for name in choices("method")} if with_methods else {}
    _refuse_unknown(raw, schema, "", methods)
    _make_lists(raw, schema, "")
    raw["time_scale"] = _scale(raw["time_scale"])
    config = _typed(raw, schema)
    if isinstance(config, LatencyConfig):
        config.profiles = load_profiles(config.device_mix)
        for name, profile in config.profiles.items():
            _check_rules(profile, f"profiles.{name}.")
    _check_rules(config, "")
    if config.emulates:
        check_links(config)
    if isinstance(config, LatencyConfig):
        for name in config.methods:
            if name not in methods:
                raise ConfigError("methods", name, nearest(name, methods))
        settings = {name: _method_settings(name, given) for name, given in methods.items()}
        config.settings = {name: settings[name] for name in config.methods}
        check_methods(config)
    check_together(config)
    return config


def register_methods() -> None:
    """Register a Hydra config that places each conf/method/NAME.yaml under the key NAME, so that no list is needed."""
    defaults = [{f"/method@_global_.{name}": name} for name in choices("method")]
    ConfigStore.instance().store(name="methods_settings", node={"defaults": defaults})


def _checked_overrides(overrides: list[str]) -> list[str]:
    """The overrides in the form that Hydra needs. Raises a ConfigError of one line where Hydra's message has many."""
    groups: dict[str, str] = {}
    values: list[str] = []
    group_names = {path.name for path in CONF.iterdir() if path.is_dir()} - {"method"}
    parser = OverridesParser.create()
    for text in overrides:
        key, _, value = text.partition("=")
        key = key.lstrip("+~")
        try:
            override = parser.parse_override(text if key else "")
        except Exception:  # HydraException; its parser also raises ValueError and RecursionError
            raise ConfigError(
                "override", text, "cannot be read; it must be KEY=VALUE, and lists must be written as [a,b]"
            ) from None
        if override.is_delete() or override.package is not None:
            raise ConfigError("override", text, "keys cannot be removed or moved; it must be KEY=VALUE")
        if override.is_sweep_override():
            raise ConfigError(key, value, "is not one value; write a list as [a,b]")
        if re.match(r"hydra\b", key):
            raise ConfigError(key, value, "unknown; Hydra's own settings can only be changed in conf/config.yaml")
        if key == "method":
            raise ConfigError(key, value, "unknown; methods are chosen by methods=[NAME,...]")
        if key in group_names:
            groups[key] = str(override.value())  # without quotes
            if groups[key] not in choices(key):
                raise ConfigError(key, value, nearest(value, choices(key)))
        else:
            # ++ also accepts keys that do not exist. _refuse_unknown finds them, here and in YAML files.
            values.append(f"++{text.lstrip('+')}")
    if "experiment" not in groups:
        raise ConfigError("+experiment", "", f"is needed; allowed: {', '.join(choices('experiment'))}")
    return [("+" if key == "experiment" else "") + f"{key}={name}" for key, name in groups.items()] + values


def _compose(overrides: list[str]) -> dict[str, Any]:
    """conf/ composed with these overrides, as plain data."""
    register_methods()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = OmegaConf.to_container(compose("config", overrides), resolve=False)
    except Exception as error:  # HydraException, OmegaConfBaseException and exceptions of their parsers
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ConfigError("overrides", " ".join(overrides), f"Hydra cannot apply them: {reason}") from None
    assert isinstance(composed, dict)
    raw = {str(key): value for key, value in composed.items()}
    _check_plain(raw, "")
    return raw


def _with_preset(overrides: list[str]) -> dict[str, Any]:
    """The composed configuration. Values of the command line override those of the chosen preset."""
    raw = _compose(overrides)
    presets = raw.pop("presets", {})
    name = raw["preset"]
    if name:
        if name not in presets:
            raise ConfigError(
                "preset",
                _shown(name),
                nearest(str(name), presets) if presets else "must be empty: this experiment has none",
            )
        raw = _compose([*(f"++{key}={_shown(value)}" for key, value in _flat(presets[name], "")), *overrides])
        raw.pop("presets")
    return raw


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for each value in nested mappings."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_plain(value: Any, key: str) -> None:
    """Raise ConfigError for references such as ``${oc.env:HOME}`` and for numbers of more than 64 bits.

    With references to the environment or the time of day, a configuration would differ between machines, and its
    manifest and messages could reveal the environment.
    """
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        _check_plain(part, f"{key}.{name}" if key else str(name))
    if isinstance(value, str) and "${" in value:
        raise ConfigError(key, value, "must not contain ${...}; references are not resolved")
    if isinstance(value, int) and value.bit_length() > 64:
        raise ConfigError(key, hex(value), "must be a number of at most 64 bits")


def _refuse_unknown(raw: dict[str, Any], schema: type, prefix: str, also: Iterable[str] = ()) -> None:
    """Raise ConfigError for the first key of ``raw`` that ``schema`` lacks. also: further keys to propose."""
    types = get_type_hints(schema)
    known = [f.name for f in dataclasses.fields(schema) if f.name not in ("settings", "profiles")]
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(f"{prefix}{key}", _shown(value), nearest(key, [*known, *also]))
        if dataclasses.is_dataclass(types[key]) and isinstance(value, dict):
            _check_kind(value, types[key], key)
            _refuse_unknown(value, types[key], f"{prefix}{key}.")


def _check_kind(section: dict[str, Any], schema: type, key: str) -> None:
    """Raise ConfigError for a section of another runner, for example images where texts are needed."""
    rule = {f.name: f.metadata for f in dataclasses.fields(schema)}.get("name", {})
    if "test" in rule and not rule["test"](section.get("name")):
        raise ConfigError(f"{key}.name", _shown(section.get("name")), f"must be {rule['allowed']}")


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
            raise ConfigError(key, _shown(value), "must be one value or a flat list [a,b]")
    return list({repr(item): item for item in items}.values())


def _scale(value: Any) -> Any:
    """time_scale with numbers as floats. OmegaConf does not check its type, because it may be a word."""
    if isinstance(value, list | dict):
        raise ConfigError("time_scale", _shown(value), "must be a number from 0.1 to 1000, or auto")
    return float(value) if type(value) is int else value


def _typed(raw: dict[str, Any], schema: type[Config]) -> Config:
    """The configuration as an object of the schema. Raises ConfigError for a missing field or a wrong type."""
    try:
        filled = {**raw, "settings": {}, "profiles": {}} if issubclass(schema, LatencyConfig) else raw
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
        raise ConfigError(key, _shown(value), f"must be {rule}") from None
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
                shown = wrong[0] if wrong else value
                raise ConfigError(f"{prefix}{f.name}", _shown(shown), f"must be {f.metadata['allowed']}")


def _method_settings(name: str, given: Any) -> dict[str, Any]:
    """A method's settings, without duplicates in lists. Raises ConfigError for unknown keys and wrong types."""
    standard = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml"))
    assert isinstance(standard, dict)
    if not isinstance(given, dict):
        keys = ", ".join(map(str, standard)) or "none"
        raise ConfigError(name, _shown(given), f"must be {name}.KEY=VALUE; keys: {keys}")
    settings: dict[str, Any] = {}
    for key, value in given.items():
        full_key = f"{name}.{key}"
        if key not in standard:
            raise ConfigError(full_key, _shown(value), nearest(key, map(str, standard)))
        example = standard[key][0] if isinstance(standard[key], list) else standard[key]
        for item in value if isinstance(value, list) else [value]:
            if type(item) is not type(example) and not (type(item) is int and type(example) is float):
                raise ConfigError(full_key, _shown(item), f"must be of type {type(example).__name__}, as {example}")
        if value == []:
            raise ConfigError(full_key, "[]", "must be at least one value")
        settings[key] = _distinct(full_key, value) if isinstance(value, list) else value
    return settings


def _shown(value: Any) -> str:
    """The value as a user would write it on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
