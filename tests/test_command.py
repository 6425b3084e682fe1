from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from testbed.command import TORCH_LACKS_MEMORY, run_command
from testbed.errors import ConfigError

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable, "-W", "error"]


def failing(error: BaseException) -> Callable[[], int]:
    def work() -> NoReturn:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("key", "x", "must be y"), "name: key=x: must be y"),
        (OSError(errno.ENOSPC, "No space left on device", "/x\n"), "name: /x\\n: No space left on device"),
        (
            OSError(errno.EXDEV, "Invalid cross-device link", "/x", None, "/y"),
            "name: /x, /y: Invalid cross-device link",
        ),
        (OSError(), "name: OSError"),
        (MemoryError(), "name: memory: not enough is left; use a smaller model, fewer tokens, shorter windows"),
        (
            RuntimeError(f"[x] {TORCH_LACKS_MEMORY}: 4000000000 bytes"),
            "name: memory: 4.0 GB at once were asked for; use",
        ),
    ],
)
def test_an_error_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("name", failing(error)) == 2
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1 and said.endswith("\n")


@pytest.mark.parametrize("error", [RuntimeError("other"), ZeroDivisionError()])
def test_a_fault_of_the_program_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_command("name", failing(error))


def test_exit_codes_are_those_of_the_work_and_of_shells() -> None:
    assert run_command("name", lambda: 1) == 1
    assert run_command("name", failing(KeyboardInterrupt())) == 130


def run(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The source, run by a Python whose environment is PATH and ``environment``."""
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([*PYTHON, "-c", source], cwd=ROOT, env=clean, capture_output=True, text=True, check=False)


PRINTS = "from testbed.command import run_command; run_command('x', lambda: print('2 \\xb5s \\xd7 3') or 0)"


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]
)
def test_letters_that_the_output_lacks_are_replaced(environment: dict[str, str]) -> None:
    done = run(PRINTS, **environment)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("2 ?")


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    source = "import sys; from testbed.command import run_command; sys.exit(run_command('x', lambda: print('a') or 0))"
    done = subprocess.run([*PYTHON, "-c", source], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.returncode == 141 and done.stderr == b""


def test_a_full_output_is_said() -> None:
    source = "import sys; from testbed.command import run_command; sys.exit(run_command('x', lambda: print('a') or 0))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PYTHON, "-c", source], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr.startswith("x: No space left on device\n") and "Traceback" not in done.stderr


def test_figures_need_no_folder_and_no_backend_of_the_user() -> None:
    """Matplotlib takes a temporary folder for its cache of fonts, and says so at length."""
    for environment in ({"HOME": "/nonexistent/user"}, {"MPLCONFIGDIR": "/proc/nowhere"}, {"MPLBACKEND": "none"}):
        done = run("import analysis.panels", **environment)
        assert (done.returncode, done.stderr) == (0, "")
