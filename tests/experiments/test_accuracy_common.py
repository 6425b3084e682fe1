"""Trained models in the cache: two runs share one training, and another device or precision has a model of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import accuracy_common
from testbed.astra.training import train as train_module
from testbed.astra.training.train import RESULT, Arithmetic
from tests.astra.toy import tiny_student, toy
from tests.astra.training.test_train import SHORT

ROOT = Path(__file__).parents[2]
# Waits for a line, so that both runs begin together; prints its training steps and a hash of its weights.
RUN = """
import hashlib, sys
import torch
from experiments.accuracy_common import fine_tune
from testbed.astra.training import train as train_module
from tests.astra.toy import tiny_student, toy
from tests.astra.training.test_train import SHORT
torch.set_num_threads(1)
steps, step = [], train_module._Run._step
train_module._Run._step = lambda run, indices: steps.append(1) or step(run, indices)
student = tiny_student()
print("ready", flush=True)
sys.stdin.readline()
fine_tune(student, toy(80, 1), toy(40, 2), SHORT, {"recipe": 1})
held = hashlib.sha256(b"".join(t.numpy().tobytes() for t in student.state_dict().values())).hexdigest()
print(len(steps), held)
"""


def test_two_processes_that_need_the_same_original_train_it_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TESTBED_CACHE": str(tmp_path)}
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    runs = [subprocess.Popen([sys.executable, "-c", RUN], text=True, env=environment, **pipe) for _ in range(2)]
    for run in runs:
        assert run.stdout is not None and run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    ends = []
    for run in runs:
        out, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
        ends.append(out.splitlines()[-1].split())
    assert sorted(int(steps) for steps, _ in ends) == [0, 10]
    assert ends[0][1] == ends[1][1]
    assert len(list(tmp_path.glob(f"training/*/{RESULT}"))) == 1


def test_another_device_or_precision_has_a_model_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders: list[Path] = []

    def train(*arguments: Any, **_: Any) -> dict[str, Any]:
        folders.append(arguments[4])
        return {"cost": {}}

    monkeypatch.setattr(accuracy_common, "train", train)
    monkeypatch.setattr(accuracy_common, "CACHE", tmp_path)
    found = []
    for gpu, bfloat16 in ((False, False), (True, False), (True, True), (False, True)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda bfloat16=bfloat16: bfloat16)
        found.append(Arithmetic.here())
        accuracy_common.fine_tune(tiny_student(), toy(80, 1), toy(40, 2), SHORT, {"recipe": 1})
    assert found == [
        Arithmetic("cpu", "float32"),
        Arithmetic("cuda", "float32"),
        Arithmetic("cuda", "bfloat16"),
        Arithmetic("cpu", "float32"),
    ]
    assert len(set(folders)) == 3 and folders[0] == folders[3]


def test_a_training_says_on_what_it_computed(tmp_path: Path) -> None:
    cost = train_module.train(tiny_student(), toy(80, 1), toy(40, 2), SHORT, tmp_path / "t")["cost"]
    assert cost["precision"] == Arithmetic.here().precision
