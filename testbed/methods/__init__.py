"""Parallel inference methods, one file each: a module here defines one Method whose ``name`` is the module's."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import Any

from testbed.errors import ConfigError, nearest
from testbed.methods.base import Method


def method_names() -> list[str]:
    """Names of all methods, sorted: the modules of this package, so that a new method is one new file."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load_method(name: str, speeds: Sequence[float] = (), **settings: object) -> Method:
    """The method ``name`` with its own settings, sharing out work by the ranks' ``speeds`` if there are any.

    Raises ConfigError for an unknown name (key ``methods``) and for a setting that the method does not have (key
    ``<name>.<setting>``). Values are checked against a model's sizes by ``Method.check``.
    """
    allowed = list(standard_settings(name))
    for setting, value in settings.items():
        if setting not in allowed:
            hint = nearest(setting, allowed) if allowed else f"unknown; {name} has no settings"
            raise ConfigError(f"{name}.{setting}", value, hint)
    loaded = _method_class(name)(**settings)
    loaded.speeds = tuple(speeds)
    return loaded


@cache
def standard_settings(name: str) -> dict[str, Any]:
    """A method's settings with the values that they have where nobody chooses. ConfigError for an unknown name."""
    parameters = inspect.signature(_method_class(name)).parameters
    return {setting: parameter.default for setting, parameter in parameters.items()}


def _method_class(name: str) -> type[Method]:
    if name not in method_names():
        raise ConfigError("methods", name, nearest(name, method_names()))
    module = importlib.import_module(f"{__name__}.{name}")
    (method,) = (
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Method) and member.__module__ == module.__name__
    )
    return method
