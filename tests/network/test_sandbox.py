"""The supervisor: exit codes, signals, and no leftovers when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from testbed.network import sandbox
from testbed.network.probe import try_mininet
from topologies.link_graph import star

SLEEP = f"1000.{os.getpid()}"  # of this process of tests only: others may run the same tests beside it
BACKENDS = [
    "loopback",
    pytest.param(
        "mininet",
        marks=[pytest.mark.emulation, pytest.mark.skipif(bool(try_mininet(star(2)).reason), reason="no Mininet")],
    ),
]
CHILD = """
import os, subprocess, sys, time, signal
from testbed.network.sandbox import scratch
(scratch() / "file").write_text("temporary")
if sys.argv[1] == "exit":
    sys.exit(7)
lost = ["first"] if sys.argv[1] == "deaf" else []
signal.signal(signal.SIGTERM, lambda *_: lost.pop() if lost else sys.exit(42))
grandchild = subprocess.Popen(["sleep", sys.argv[2]], start_new_session=True)  # as Ray's daemons detach themselves
print("ready", scratch(), flush=True)
time.sleep(1000)
"""


def start(backend: str, tmp_path: Path, mode: str) -> subprocess.Popen[str]:
    (tmp_path / "sandboxed.py").write_text(CHILD)
    code = "import sys; from testbed.network.sandbox import supervise; "
    code += f"sys.exit(supervise(['{mode}', '{SLEEP}'], '{backend}', 'sandboxed'))"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(sandbox.__file__).parents[2]}"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def sleepers() -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", SLEEP]]


def wait_gone(timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while sleepers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sleepers() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_exit_code_comes_back(backend: str, tmp_path: Path) -> None:
    assert start(backend, tmp_path, "exit").wait(20) == 7


@pytest.mark.parametrize("path", ["", "/nowhere"])
def test_tools_of_the_system_need_no_path(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", path)
    assert start("loopback", tmp_path, "exit").wait(20) == 7
    assert sandbox.tool_path().split(":")[: bool(path) + 1] == [*filter(None, [path]), "/usr/bin"]


@pytest.mark.parametrize("name", ["TESTBED_BACKEND", "TESTBED_SCRATCH"])
def test_one_variable_alone_is_no_sandbox(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TESTBED_BACKEND", "TESTBED_SCRATCH"):
        monkeypatch.setenv(variable, "loopback" if variable == name else "")
    assert not sandbox.inside()


@pytest.mark.parametrize("backend", BACKENDS)
def test_sigterm_reaches_the_run_and_nothing_is_left(backend: str, tmp_path: Path) -> None:
    run = start(backend, tmp_path, "stay")
    assert run.stdout is not None
    folder = Path(run.stdout.readline().split()[1])
    run.send_signal(signal.SIGTERM)
    assert run.wait(20) == 128 + signal.SIGTERM
    wait_gone()
    assert not folder.exists()


def test_a_signal_that_a_library_swallowed_is_sent_again(tmp_path: Path) -> None:
    run = start("loopback", tmp_path, "deaf")
    assert run.stdout is not None
    run.stdout.readline()
    run.send_signal(signal.SIGTERM)
    assert run.wait(2 * sandbox.RESEND_S) == 128 + signal.SIGTERM
    wait_gone()


@pytest.mark.emulation
@pytest.mark.skipif(bool(try_mininet(star(2)).reason), reason="no Mininet")
def test_sigkill_of_the_supervisor_ends_everything(tmp_path: Path) -> None:
    run = start("mininet", tmp_path, "stay")
    assert run.stdout is not None
    run.stdout.readline()
    run.kill()
    run.wait(20)
    wait_gone()
    assert not Path("/dev/shm/run").exists()
