"""What a value of the configuration may be: rules that stand beside the fields of testbed/config/schema.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

from testbed.comm.schedule import AUTO

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def choices(group: str) -> list[str]:
    """The names that ``group=NAME`` takes: the files of conf/GROUP/ and, as FOLDER/NAME, of folders in it."""
    folder = CONF / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def ruled(allowed: str, test: Callable[[Any], bool] = lambda value: True) -> Any:
    """A field whose value (each item, for a list) must pass ``test``; ``allowed`` says so in words, with the unit."""
    return field(metadata={"allowed": allowed, "test": test})


def section() -> Any:
    """A field whose parts have rules of their own."""
    return field()


def positive(value: float) -> bool:
    """Finite and above zero."""
    return 0 < value < math.inf


def link_rate(mbps: float) -> bool:
    """A rate that times and queues can be computed of: 1 kbit/s to 1 Tbit/s."""
    return 1e-3 <= mbps <= 1e6


def scale(value: Any) -> bool:
    """A time_scale: AUTO, or how many times slower than real everything runs."""
    return value == AUTO or (isinstance(value, float) and 0.1 <= value <= 1000)


def count() -> Any:
    """A whole number from 1 to a million: what is beyond is a slip, and formulas would leave the range of numbers."""
    return ruled("a whole number from 1 to 1000000", lambda value: 1 <= value <= 1_000_000)


def one_of(*names: str) -> Any:
    """One of a few words."""
    return ruled(f"one of {', '.join(names)}", lambda value: value in names)


def named(group: str) -> Any:
    """The name of a file in conf/GROUP/."""
    return ruled(f"a name in conf/{group}/", lambda value: value in choices(group))
