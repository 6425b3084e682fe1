"""The cache: one run makes a file while others wait, a dead run leaves no lock, and a full disk is one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.codebooks import cached_codebooks
from testbed.astra.quantizer import Codebooks
from testbed.errors import EnvironmentFault, TestbedError
from testbed.models import weights
from testbed.models.shape import ModelShape
from testbed.models.tensor_cache import cached_tensor
from testbed.results.cache import cache_folder, making

HOLDER = "import sys, time; from pathlib import Path; from testbed.results.cache import making\n"
HOLDER += "with making(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process, which has the lock."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_a_run_waits_for_the_other_one_and_a_killed_one_leaves_no_lock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, made = tmp_path / "cache" / "codebooks.safetensors", threading.Event()

    def wait() -> None:
        with making(path):
            made.set()

    with hold(path) as holder:
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not made.wait(0.5)
        os.kill(holder.pid, signal.SIGKILL)
        assert made.wait(10)
        waiting.join()
    assert capsys.readouterr().out == f"waiting for another run, which is making {path}\n"
    with making(tmp_path / "cache" / "other"):
        assert capsys.readouterr().out == ""


def test_of_two_runs_that_need_a_tensor_one_computes_it(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> torch.Tensor:
        calls.append(1)
        time.sleep(0.3)
        return torch.arange(5)

    found: list[torch.Tensor] = []
    runs = [
        threading.Thread(target=lambda: found.append(cached_tensor(tmp_path / "a.safetensors", "x", make)))
        for _ in range(3)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(calls) == 1 and len(found) == 3
    assert all(torch.equal(tensor, torch.arange(5)) for tensor in found)


@pytest.mark.parametrize("content", [b"", b"{}", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_file_is_made_again_with_a_warning(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"a\.safetensors .*; it is made again"):
        assert torch.equal(cached_tensor(path, "x", lambda: torch.ones(2)), torch.ones(2))
    (odd := tmp_path / "a\nb").mkdir()
    (odd / "a.safetensors").write_text("damaged")
    with pytest.warns(UserWarning, match=r"a\\nb/a\.safetensors .*; it is made again"):
        cached_tensor(odd / "a.safetensors", "x", lambda: torch.ones(2))
    with pytest.warns(UserWarning, match=r"it lacks 'y'; it is made again"):
        cached_tensor(path, "y", lambda: torch.zeros(2))


def test_a_folder_that_cannot_be_written_is_named_with_the_variable_that_moves_it(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    needed = r"cache/x cannot be written: a file stands where a folder is needed; .*TESTBED_CACHE names another"
    with pytest.raises(EnvironmentFault, match=needed) as caught:
        cached_tensor(tmp_path / "cache" / "x", "x", lambda: torch.ones(2))
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(EnvironmentFault, match=r"a\.safetensors cannot be written: .*No space left.*TESTBED_CACHE"):
        cached_tensor(tmp_path / "a.safetensors", "x", lambda: torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == [".a.safetensors.lock"]


def test_other_faults_of_what_is_made_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match=r"^the loss is nan$") as caught, making(tmp_path / "a"):
        raise TestbedError("the loss is nan")
    assert not isinstance(caught.value, EnvironmentFault)


def test_the_variable_names_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESTBED_CACHE", raising=False)
    assert cache_folder(tmp_path / ".cache") == tmp_path / ".cache"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESTBED_CACHE", "elsewhere")
    assert cache_folder(tmp_path / ".cache") == tmp_path / "elsewhere"
    monkeypatch.setenv("TESTBED_CACHE", "/a\udcff")
    with pytest.raises(
        EnvironmentFault, match=r"^/a\\udcff: .* not UTF-8; the environment variable TESTBED_CACHE must"
    ):
        cache_folder(tmp_path / ".cache")


def test_runs_that_need_some_of_the_same_codebooks_train_each_of_them_once(tmp_path: Path) -> None:
    specs = [CodebookSpec(groups, 4) for groups in (1, 2, 4)]
    shape = ModelShape(1, 8, 2, 16, 4, 1, 12, 2)
    trained: list[CodebookSpec] = []

    def train(missing: list[CodebookSpec]) -> dict[CodebookSpec, Codebooks]:
        trained.extend(missing)
        time.sleep(0.2)
        return {spec: Codebooks(torch.zeros(spec.codebook_shape(shape)), None) for spec in missing}

    runs = [
        threading.Thread(target=cached_codebooks, args=({}, chosen, shape, tmp_path, train))
        for chosen in (specs[:2], specs[:0:-1])
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(20)
    assert sorted(spec.groups for spec in trained) == [1, 2, 4]
