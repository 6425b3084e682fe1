"""Runs a command line in this process and says how it ended: with results, with one line, or in a way nobody may see.

A command may end with results (exit code 0, or 1 if points failed), or with one line ``error: ...`` (exit code 2, or 1
for a fault while it measured). Warnings may precede the line. Anything else is a fault of the program.

``python -m pytest tests/anyone -s --hypothesis-profile=long --timeout=0`` tries many inputs and prints how they ended.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pandas as pd
from hypothesis import Phase, event, settings

from testbed import run
from testbed.errors import TestbedError
from testbed.results.run_folder import RunFolder
from testbed.results.schema import LATENCY, RowSchema

LIMIT_S = 60  # of one command; a longer one hangs, or does work before it looks at its input
LONGEST_LINE = 6000  # characters of a message; a path may have 4095
LONG_FACTOR = 40  # more examples with ``--hypothesis-profile=long``

endings: Counter[tuple[str, str]] = Counter()  # (generator, how it ended) -> number of inputs


def examples(count: int) -> settings:
    """The settings of a property that tries ``count`` inputs, or LONG_FACTOR times as many in the long profile."""
    long = settings.get_current_profile_name() == "long"
    phases = [
        phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)
    ]  # inputs are small, and each is slow
    return settings(max_examples=count * (LONG_FACTOR if long else 1), phases=phases)


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines on stderr."""
        return self.err.split("\n")[:-1]

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that name a fault."""
        return [line for line in self.lines if line.startswith("error: ")]

    def check(self) -> str:
        """``results``, ``failed`` or ``one line``. Fails for every other ending."""
        assert "Traceback" not in self.err and "Traceback" not in self.out, self
        assert self.err == "" or self.err.endswith("\n"), self
        assert len(self.errors) <= 1, self
        for line in self.errors:
            check_line(line.removeprefix("error: "))
        if self.code == 0:
            assert self.out.strip() and not self.errors, self
            return "results"
        if self.code == 1 and not self.errors:
            assert self.out.strip(), self
            return "failed"
        assert self.code in (1, 2) and self.errors == self.lines[-1:], self
        assert self.code == 1 or "=" in self.errors[0] or "/" in self.errors[0], self  # bad input: a key or a file
        return "one line"


def check_line(message: str) -> None:
    """Fails for a message that is no printable line, or shows the program's inside."""
    assert message.isprintable() and len(message) < LONGEST_LINE, message
    for word in ("<class ", "object at 0x", "Errno", "NoneType", "Exception"):
        assert word not in message, message


@contextlib.contextmanager
def limited(limit_s: int = LIMIT_S) -> Iterator[None]:
    """Fail a block that takes longer, wherever it waits, as in opening a pipe that nobody writes to."""

    def stop(number: int, frame: object) -> NoReturn:
        raise AssertionError(f"no end after {limit_s} s")

    before, begin = signal.signal(signal.SIGALRM, stop), time.monotonic()
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, limit_s)  # of the limit of the whole test
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left_s:
            signal.setitimer(signal.ITIMER_REAL, max(0.1, left_s - (time.monotonic() - begin)))


def end(words: list[str], encoding: str = "utf-8") -> Ending:
    """Run a command line in this process, with streams of this encoding."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors) for errors in ("strict", "backslashreplace"))
    with (
        limited(),
        warnings.catch_warnings(record=True) as caught,
        mock.patch.object(sys, "stdout", out),
        mock.patch.object(sys, "stderr", err),
    ):
        warnings.simplefilter("always")
        code = run.main(words)
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode(encoding))  # pyright: ignore[reportAttributeAccessIssue]
    for warning in caught:
        assert warning.category is UserWarning and str(warning.message).isprintable(), warning
    return Ending(code, *texts)


def tried(generator: str, words: list[str], encoding: str = "utf-8") -> Ending:
    """Run and check a command line, and count how it ended."""
    ending = end(words, encoding)
    count(generator, ending.check())
    return ending


def count(generator: str, how: str) -> None:
    """Count an input of a generator."""
    endings[generator, how] += 1
    event(how)


def rows_below(results_dir: Path, schema: RowSchema = LATENCY) -> pd.DataFrame:
    """The rows of the only run below this folder."""
    (path,) = results_dir.glob("*/*/results.parquet")
    signature, experiment = path.parent.name, path.parent.parent.name
    return RunFolder(results_dir, experiment, signature, schema).rows()


def refusal(work: Callable[[], object]) -> TestbedError | None:
    """The error for users that ``work()`` raises, or None."""
    with limited():
        try:
            work()
        except TestbedError as error:
            check_line(str(error))
            return error
    return None
