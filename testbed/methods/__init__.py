"""Parallel inference methods, one file each: a module defines one Method, whose ``name`` is the module's name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import Any

from testbed.errors import ConfigError, nearest
from testbed.methods.base import Method

SHARED = ("base", "row_parallel", "views")  # modules of this package that define no method


def method_names() -> list[str]:
    """Names of all methods, sorted: the modules of this package, so that a new method is one new file."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED)


def load_method(name: str, speeds: Sequence[float] = (), **settings: object) -> Method:
    """The method ``name`` with these settings. speeds: see Method.

    Raises ConfigError for an unknown name (key ``methods``) and for a setting that the method does not have (key
    ``<name>.<setting>``). ``Method.check`` checks the values against a model.
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
    """A method's settings with their defaults. Raises ConfigError for an unknown name."""
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
