"""Any results folder, cache, environment and fault of a disk: results, or one line that names the folder."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import accuracy_common, accuracy_lm
from testbed.results.cache import VARIABLE, cache_folder
from tests.anyone.command import Ending, count, examples, refusal, tried
from tests.anyone.data_folders import Entry, make
from tests.tiny_llama import save_tiny_llama

ROOT = Path(__file__).parents[2]
ANALYTIC = ["+experiment=smoke", "network=analytic", "bandwidths=10", "methods=single"]
LM = ["+experiment=accuracy_lm", "model=hub_folder", "data=text_folder", "data.length=16", "data.windows=2"]
LM += ["data.codebook_windows=4", "groups=2", "codebook_sizes=4", "anchor_tokens=0", "devices=2", "quantized=residual"]

# What stands at the place that results_dir or the cache names.
PLACES = ["new", "folder", "file", "dangling", "loop", "pipe", "below a file", "deep", "device", "latest is a folder"]
NAMES = [
    "r",
    "é ü",
    "a=b",
    "a#b",
    "~x",
    "x" * 255,
    "x" * 256,
    "\udcff",
    "-",
    "[a,b]",
    "{a:b}",
    "a'b",
    "a\\ b",
    "$HOME",
    ".",
]
ERRORS = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT, errno.ESTALE, errno.ENOLCK, errno.EMFILE]
CALLS = ["os.replace", "os.fsync", "os.open", "os.unlink", "os.symlink", "os.mkdir", "os.listdir", "fcntl.flock"]
CALLS += ["os.rename", "tempfile.TemporaryFile", "builtins.open", "io.open"]
VARIABLES = {
    "HOME": [None, "", "/nonexistent", "relative", "/dev/null"],
    "TESTBED_CACHE": [None, "", "~", "/dev/null", "relative"],
    "TMPDIR": [None, "", "/nonexistent", "/dev/null"],
    "LC_ALL": ["C", "POSIX", "xx_YY.UTF-8", ""],
    "PYTHONUTF8": ["0", "1"],
    "PYTHONCOERCECLOCALE": ["0"],
    "PYTHONIOENCODING": ["ascii", "latin-1", "ascii:strict"],
    "COLUMNS": ["0", "-1", "x", "1", "100000"],
    "LINES": ["0", "x"],
    "TERM": [None, "", "dumb", "xterm"],
    "NO_COLOR": ["1"],
    "FORCE_COLOR": ["1"],
    "OMP_NUM_THREADS": ["garbage", "0", "-1", "99999"],
    "PATH": ["", "/nonexistent"],
    "RAY_ADDRESS": ["auto", "ray://x"],
    "RAY_TMPDIR": ["/nonexistent"],
    "MPLBACKEND": ["x", "agg"],
    "MPLCONFIGDIR": ["/dev/null"],
    "TESTBED_BACKEND": ["", "loopback"],
    "TZ": ["Nowhere/x"],
    "USER": [None],
    "XDG_CACHE_HOME": ["/dev/null"],
    "CUDA_VISIBLE_DEVICES": ["x"],
    "HYDRA_FULL_ERROR": ["1"],
    "PYTHONWARNINGS": ["error", "x"],
}


def put(place: str, path: Path) -> str:
    """Make what stands at ``path``. Returns the path to name."""
    with contextlib.suppress(OSError):
        if place in ("folder", "latest is a folder"):
            (path / ("latest" if place != "folder" else "")).mkdir(parents=True)
        elif place in ("file", "below a file"):
            path.write_text("x")
        elif place == "pipe":
            os.mkfifo(path)
        elif place in ("dangling", "loop", "device"):
            path.symlink_to({"dangling": "/nowhere/x", "loop": path.name, "device": "/dev/full"}[place])
    return f"{path}{'/inner' if place == 'below a file' else '/aaaaaaa' * 400 if place == 'deep' else ''}"


@contextlib.contextmanager
def failing(call: str, number: int, after: int, below: Path) -> Iterator[None]:
    """Let a call fail with this error for paths below this folder, except the first ``after`` times."""
    module, _, name = call.rpartition(".")
    real: Callable[..., Any] = getattr(sys.modules[module], name)
    calls = 0

    def fails(*words: Any, **options: Any) -> Any:
        nonlocal calls
        first = words[0] if words else options.get("dir", "")
        try:
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
        except (OSError, TypeError):
            return real(*words, **options)
        calls += str(path).startswith(str(below))
        if str(path).startswith(str(below)) and calls > after:
            raise OSError(number, os.strerror(number), str(path))
        return real(*words, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[module], name, fails)
        yield


@examples(10)
@given(st.sampled_from(PLACES), st.sampled_from(NAMES), st.sampled_from(["", "resume=false"]))
def test_results_folders(place: str, name: str, resume: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        named = put(place, Path(folder) / name)
        tried("results folders", [*ANALYTIC, f"results_dir={named}", *filter(None, [resume])])


@examples(8)
@given(st.sampled_from(CALLS), st.sampled_from(ERRORS), st.integers(0, 4), st.booleans())
def test_disks_that_fail_under_results(call: str, number: int, after: int, again: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = [*ANALYTIC, f"results_dir={folder}"]
        if again:
            assert tried("results on a disk that fails", words).code == 0
        with failing(call, number, after, Path(folder)):
            tried("results on a disk that fails", [*words, "resume=false"] if again else words)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    texts = [Entry(f"part {i}.txt", f"{i} sheep and {i * 7} goats ".encode() * 12) for i in range(30)]
    return [f"model.folder={save_tiny_llama(folder / 'hub')}", f"data.folder={make({'': texts}, folder / 'texts')}"]


@examples(4)
@given(st.sampled_from(PLACES), st.sampled_from([name for name in NAMES if name != "."]), st.none() | st.data())
def test_caches(inputs: list[str], place: str, name: str, data: st.DataObject | None) -> None:
    """With data, the disk of the cache fails."""
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        contextlib.ExitStack() as stack,
    ):
        patch.setenv(VARIABLE, put(place, Path(folder) / name))
        if refusal(lambda: cache_folder(Path("unused"))):
            count("caches", "one line")
            return
        for module in (accuracy_common, accuracy_lm):
            patch.setattr(module, "CACHE", cache_folder(Path("unused")))
        if data is not None:
            call, number = data.draw(st.sampled_from(CALLS)), data.draw(st.sampled_from(ERRORS))
            stack.enter_context(failing(call, number, data.draw(st.integers(0, 5)), Path(folder) / name))
        with tempfile.TemporaryDirectory() as results:
            tried("caches", [*LM, *inputs, f"results_dir={results}"])


@examples(1)  # seconds each
@given(st.dictionaries(st.sampled_from(sorted(VARIABLES)), st.integers(0, 9), min_size=3, max_size=8), st.booleans())
def test_variables(chosen: dict[str, int], good: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name, index in chosen.items():
        value = VARIABLES[name][index % len(VARIABLES[name])]
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    with tempfile.TemporaryDirectory() as folder:
        words = [*ANALYTIC, "results_dir=é/x", *([] if good else ["bandwidths=é"])]
        command = [sys.executable, "-m", "testbed.run", *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    encoding = environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    said = done.stderr.decode(encoding, "replace")
    lines = [line for line in said.splitlines(keepends=True) if not line.startswith(("\nlibgomp", "libgomp", "\n"))]
    ending = Ending(done.returncode, done.stdout.decode(encoding, "replace"), "".join(lines))
    assert ending.check() == ("results" if good else "one line"), (chosen, ending)
    count("variables of the environment", ending.check())
