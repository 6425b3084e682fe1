"""Progress of long work: a bar on a terminal, elsewhere one plain line for each step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WIDTH_WHEN_PLAIN = 120  # a log file has no width, and rich would wrap its lines at 80
NARROWEST = 80  # rich drops columns of a narrower terminal, and prints nothing at width 0; a terminal wraps lines


def console(width_when_plain: int = WIDTH_WHEN_PLAIN) -> Console:
    """The console for messages and tables: the terminal, or plain lines if there is none."""
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}  # messages quote foreign text
    found = Console(**plain)
    width = max(found.width, NARROWEST) if found.is_terminal else width_when_plain
    return found if width == found.width else Console(**plain, width=width)


class Steps:
    """Steps of known relative cost. ``begin`` names the current step, ``done`` prints its result and advances."""

    def __init__(self, bar: Progress | None, total: float, plain: Console):
        self._bar, self._plain = bar, plain
        self._task = bar.add_task("", total=total) if bar else None

    def begin(self, title: str) -> None:
        """Name the current step."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=title)

    def done(self, cost: float, line: str) -> None:
        """Complete one step. ``line`` stays on the screen."""
        self._plain.print(line, soft_wrap=True)
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, cost)

    def fraction(self, cost: float) -> None:
        """Complete a part of a step."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, cost)


@contextlib.contextmanager
def steps(title: str, total: float) -> Iterator[Steps]:
    """Show ``title`` and the progress of ``total`` units of cost (seconds where they are known)."""
    plain = console()
    if not plain.is_terminal:
        plain.print(title)
        yield Steps(None, total, plain)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=plain, transient=True) as bar:
        found = Steps(bar, total, plain)
        found.begin(title)
        yield found


@contextlib.contextmanager
def counted(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback ``(done, total)`` for work that reports its own progress."""
    with steps(title, 1.0) as shown:
        seen = 0.0

        def report(done: int, total: int) -> None:
            nonlocal seen
            shown.fraction(done / total - seen)
            seen = done / total

        yield report
