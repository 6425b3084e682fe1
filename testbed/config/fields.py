"""Dataclass fields that carry the rule for their values, for testbed/config/schema.py; and the choices of a group."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

from testbed.comm.schedule import AUTO
from testbed.device.spec import Curve

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def choices(group: str) -> list[str]:
    """The names that ``group=NAME`` accepts: files of conf/GROUP/, and files of its folders as FOLDER/NAME."""
    folder = CONF / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def checked(allowed: str, test: Callable[[Any], bool] = lambda value: True) -> Any:
    """A field whose value must pass ``test``. If the value is a list, each item must.

    allowed: the same rule in words, with the unit. Messages and docs/configuration.md quote it.
    """
    return field(metadata={"allowed": allowed, "test": test})


def path(allowed: str, test: Callable[[str], bool] = lambda value: True) -> Any:
    """A field for the path of a file or folder. ``~`` at its beginning is the home folder."""
    return field(metadata={"allowed": allowed, "test": test, "path": True})


def section() -> Any:
    """A field that is a dataclass itself. Its fields have their own rules."""
    return field()


def is_positive(value: float) -> bool:
    """Whether the value is finite and above zero."""
    return 0 < value < math.inf


def is_link_rate(mbps: float) -> bool:
    """Whether times and queue lengths can be computed for this rate: 1 kbit/s to 1 Tbit/s."""
    return 1e-3 <= mbps <= 1e6


def is_time_scale(value: Any) -> bool:
    """Whether the value is a time scale: AUTO, or the factor by which everything runs slower."""
    return value == AUTO or (isinstance(value, float) and 0.1 <= value <= 1000)


CURVE = (
    "SHARE@SIZE words by ascending size, as 0.4@32 1@128, with shares above 0, at most 1, that do not fall; or nothing"
)


def read_curve(text: str) -> Curve:
    """The points of an efficiency curve (testbed.device.spec). Raises ValueError unless the text is as CURVE says."""
    words = [word.split("@") for word in text.split()]
    points = tuple((float(size), float(share)) for share, size in words)
    if not all(0 < size < math.inf and 0 < share <= 1 for size, share in points):
        raise ValueError(text)
    for (size, share), (larger, next_share) in itertools.pairwise(points):
        if larger <= size or next_share < share:
            raise ValueError(text)
    return points


def write_curve(curve: Curve) -> str:
    """The text of a curve, with shares of three significant digits."""
    return " ".join(f"{float(f'{share:.3g}'):f}".rstrip("0").rstrip(".") + f"@{size:g}" for size, share in curve)


def is_curve(text: str) -> bool:
    """Whether the text is an efficiency curve."""
    try:
        read_curve(text)
    except ValueError:
        return False
    return True


def link_rates() -> Any:
    """A field for rates of links."""
    return checked("numbers from 0.001 to 1000000 (Mbps), at least one", is_link_rate)


def count() -> Any:
    """A field for a whole number from 1 to a million. Larger numbers are typing errors and would overflow formulas."""
    return checked("a whole number from 1 to 1000000", lambda value: 1 <= value <= 1_000_000)


def one_of(*names: str) -> Any:
    """A field for one of these words."""
    return checked(f"one of {', '.join(names)}", lambda value: value in names)


def name_in(group: str) -> Any:
    """A field for the name of a file in conf/GROUP/."""
    return checked(f"a name in conf/{group}/", lambda value: value in choices(group))
