"""Composes conf/ with a command line: Hydra joins the files, then the preset and the command line set their values."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from testbed.config import fields
from testbed.config.fields import choices
from testbed.config.files import PRESETS, check_alike, place, written
from testbed.config.origins import Origin, Origins, flat
from testbed.config.words import TEXT_KEYS, CommandLine, check_plain, hydra_words
from testbed.errors import ConfigError, nearest

SECTIONS = ("data", "device", "model", "network", "topology")  # groups whose values stand under the group's name


@dataclass(frozen=True)
class Part:
    """A file that takes part. package: the dotted key under which its values stand. group: it was chosen with."""

    path: Path
    package: str
    group: str = ""


def composed(given: CommandLine) -> tuple[dict[str, Any], Origins]:
    """The configuration as plain data, with the origin of each value. Raises ConfigError."""
    parts, config = _joined(given.groups)
    origins, presets = Origins(), {}
    for part in parts:
        values = _values(part)
        presets |= {key: of for key, of in values.items() if key.startswith(f"{PRESETS}.")}
        origins.update({key: of for key, of in values.items() if key not in presets})
    raw = _plain(config)
    names = raw.get(PRESETS, {})
    if not isinstance(names, dict) or not all(isinstance(values, dict) for values in names.values()):
        raise origins.named(ConfigError(PRESETS, names, "must be NAME: {KEY: VALUE, ...} for each preset"))
    with open_dict(config):
        config.pop(PRESETS, None)
    typed = [word.value for word in given.values if word.key == "preset"]
    preset = typed[-1] if typed else raw["preset"]
    if preset:
        if not isinstance(preset, str) or preset not in names:
            allowed = nearest(str(preset), names) if names else "must be empty: this experiment has none"
            error = ConfigError("preset", preset, allowed)
            raise error if typed else origins.named(error)
        for key, value in flat(names[preset]):
            _set(config, key, value, value)
        for key, of in presets.items():
            if (inner := key.removeprefix(f"{PRESETS}.{preset}.")) != key:
                origins.set(inner, [replace(origin, key=inner, where=f"{origin.where}, {preset=!s}") for origin in of])
    for word in given.values:
        _set(config, word.key, word.value, word.text)
        origins.set_word(word)
    return _plain(config), origins


def register_methods() -> None:
    """Register a Hydra config that places each conf/method/NAME.yaml under the key NAME, so that no list is needed."""
    defaults = [{f"/method@_global_.{name}": name} for name in choices("method")]
    ConfigStore.instance().store(name="methods_settings", node={"defaults": defaults})


def profile_origins(name: str) -> dict[str, list[Origin]]:
    """The origins of the values in conf/device/NAME.yaml, as of keys ``profiles.NAME``. Raises ConfigError."""
    of = _values(Part(fields.CONF / "device" / f"{name}.yaml", "device"))
    inner = {key.removeprefix("device."): items for key, items in of.items()}
    return {f"profiles.{name}.{key}": [replace(origin, key=key) for origin in of] for key, of in inner.items()}


def _joined(groups: dict[str, str]) -> tuple[list[Part], DictConfig]:
    """The files of conf/ that these choices need, in the order in which later ones count, and their values."""
    register_methods()
    chosen = hydra_words(CommandLine(groups, []))
    try:
        with initialize_config_dir(str(fields.CONF), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            needed = loader.compute_defaults_list("config", chosen, RunMode.RUN).defaults
            config = compose("config", chosen)
    except Exception as error:  # HydraException, OmegaConfBaseException and exceptions of their parsers
        for path in [*_files(groups), *sorted(fields.CONF.rglob("*.yaml"))]:
            group = path.relative_to(fields.CONF).parts[0]
            _values(Part(path, group if group in SECTIONS else ""))  # says more of a damaged file
        first, *others = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        reason = " ".join([first, *map(str.strip, others[:1])]) if first.endswith(":") else first
        unused = re.match(r"Could not override '(\w+)'", reason)
        if unused and unused[1] in groups:
            allowed = f"unknown; experiment {groups['experiment']} has no {unused[1]}"
            raise ConfigError(unused[1], groups[unused[1]], allowed) from None
        where = re.search(r"'([a-z]+)/([^']+)'", reason)
        if where and (path := fields.CONF / where[1] / f"{where[2]}.yaml").is_file():
            raise ConfigError(where[1], where[2], f"its defaults cannot be applied: {reason}", place(path)) from None
        raise ConfigError("overrides", " ".join(chosen), f"Hydra cannot apply them: {reason}") from None
    files = [(fields.CONF / f"{part.config_path}.yaml", part.package or "") for part in needed]
    by_choice = _files(groups)
    return [Part(path, package, by_choice.get(path, "")) for path, package in files if path.is_file()], config


def _files(groups: dict[str, str]) -> dict[Path, str]:
    """The chosen files, with their groups."""
    return {fields.CONF / group / f"{name}.yaml": group for group, name in groups.items()}


def _values(part: Part) -> dict[str, list[Origin]]:
    """The origins of a file's values by key; values of presets have keys ``presets.NAME.KEY``. Raises ConfigError.

    Where the name of the file is a value itself, as in ``name: star``, the choice is its origin.
    """
    found: dict[str, list[Origin]] = {}
    for value in written(part.path):
        of_preset = value.key.startswith(f"{PRESETS}.")
        key = f"{part.package}.{value.key}" if part.package and not of_preset else value.key
        check_alike(part.path, value, ".".join(key.split(".")[2:]) if of_preset else key)
        origin = Origin(key, value.text, place(part.path))
        if part.group and key in TEXT_KEYS and value.text == part.path.stem:
            origin = Origin(part.group, value.text)
        found.setdefault(key, []).append(origin)
    return found


def _plain(config: DictConfig) -> dict[str, Any]:
    """The values as plain data."""
    try:
        container = OmegaConf.to_container(config, resolve=False)
    except RecursionError:
        raise ConfigError("overrides", "", "have too many lists and mappings inside each other") from None
    assert isinstance(container, dict)
    raw = {str(key): value for key, value in container.items()}
    check_plain(raw, "")
    return raw


def _set(config: DictConfig, key: str, value: Any, text: Any) -> None:
    """Set one value as Hydra does for ``++KEY=VALUE``. Unknown keys are found later, here and in files."""
    try:
        OmegaConf.update(config, key, value, merge=True, force_add=True)
    except Exception as error:  # OmegaConfBaseException, and ValueError and AttributeError for a part of a list
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(key, text, f"cannot be set: {reason}") from None
