"""Training: it learns, resumes from a checkpoint without a difference, and names what went wrong."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.training import train as train_module
from testbed.astra.training.checkpoints import open_result
from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings
from testbed.astra.training.evaluation import correctness
from testbed.astra.training.objective import Objective
from testbed.astra.training.settings import TrainingSettings
from testbed.astra.training.train import CHECKPOINT, MANIFEST, RESULT, train
from testbed.astra.training.vit import AstraVit, Student
from testbed.astra.vit_codebooks import train_vit_codebooks
from testbed.errors import ConfigError, EnvironmentFault, TestbedError
from tests.astra.toy import CONFIG, Toy, tiny_model, tiny_student, toy

SHORT = TrainingSettings(
    epochs=2, batch=16, learning_rate=3e-3, devices=(1, 2, 4), random_cuts=True, checkpoint_steps=2
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only lose time to a second thread, seconds where another process wants the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(student: Student, folder: Path, settings: TrainingSettings = SHORT, **more: Any) -> dict[str, Any]:
    return train(student, more.pop("examples", toy(80, 1)), toy(40, 2), settings, folder, **more)


def accuracy(student: Student, examples: Toy, devices: int) -> float:
    return correctness(student, examples, devices).float().mean().item()


def test_fine_tuning_wins_back_what_k_means_loses(tmp_path: Path) -> None:
    data, test = toy(600, 1), toy(1000, 3)
    plain = AstraVit(tiny_model())
    settings = TrainingSettings(epochs=4, batch=32, learning_rate=3e-3)
    manifest = run(plain, tmp_path / "plain", settings, examples=data)
    uncompressed, spec = accuracy(plain, test, 1), CodebookSpec(1, 4)
    codebooks_LIKd = train_vit_codebooks(plain.model, data.pixels, [spec], seed=0)[spec].codebooks_LIKd
    student = AstraVit(copy.deepcopy(plain.model), VectorQuantizer(codebooks_LIKd, VqSettings(noise=0.3)))
    kmeans = accuracy(student, test, 4)
    run(student, tmp_path / "astra", replace(settings, devices=(4,), learning_rate=1e-3), examples=data)
    fine_tuned = accuracy(student, test, 4)
    assert uncompressed > 0.9 and manifest["history"][-1]["loss"] < manifest["history"][0]["loss"] / 2
    assert kmeans < uncompressed - 0.1
    assert fine_tuned > kmeans + 0.1


def states_equal(one: Student, other: Student) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == again and torch.equal(a, b) for (name, a), (again, b) in pairs)


@pytest.mark.parametrize("stop_after", [3, 5, 8])  # within the first epoch of 5 steps, at its end, within the second
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path, monkeypatch: Any, stop_after: int) -> None:
    settings = replace(SHORT, objective=Objective(labels=1, logits=0.5, states=0.1))
    teacher = AstraVit(tiny_model(seed=5))
    whole, halves = tiny_student(), tiny_student()
    expected = run(whole, tmp_path / "whole", settings, teacher=teacher)
    step = train_module._Run._step

    def interrupted(self: Any, indices: torch.Tensor) -> float:
        if self.progress.step == stop_after:
            raise KeyboardInterrupt
        return step(self, indices)

    monkeypatch.setattr(train_module._Run, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(halves, tmp_path / "halves", settings, teacher=teacher)
    monkeypatch.undo()
    torch.manual_seed(1234)  # whatever the process has drawn meanwhile
    again = tiny_student()
    found = run(again, tmp_path / "halves", settings, teacher=teacher)
    assert found["history"] == expected["history"] and found["cost"]["samples"] == 160
    assert states_equal(again, whole)
    for name in (CHECKPOINT, RESULT):
        with_state = {part: tensors_of(tmp_path / part / name) for part in ("whole", "halves")}
        assert with_state["whole"].keys() == with_state["halves"].keys()
        assert all(torch.equal(value, with_state["halves"][key]) for key, value in with_state["whole"].items())


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def test_the_seed_decides_and_the_caller_s_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    students = [tiny_student(), tiny_student(), tiny_student()]
    torch.manual_seed(9)
    for index, (student, seed) in enumerate(zip(students, (0, 0, 1), strict=True)):
        run(student, tmp_path / str(index), replace(SHORT, epochs=1, seed=seed))
    assert torch.equal(torch.rand(3), expected)
    assert states_equal(students[0], students[1]) and not states_equal(students[0], students[2])


def test_a_finished_run_is_not_trained_again_unless_asked(tmp_path: Path, monkeypatch: Any) -> None:
    first = tiny_student()
    manifest = run(first, tmp_path)
    taken = []
    step = train_module._Run._step
    monkeypatch.setattr(train_module._Run, "_step", lambda self, indices: taken.append(1) or step(self, indices))
    again = tiny_student()
    assert run(again, tmp_path)["history"] == manifest["history"] and not taken
    assert torch.equal(again.model.head.weight, first.model.head.weight)
    run(tiny_student(), tmp_path, resume=False)
    assert len(taken) == 10


def test_manifest_and_result_say_what_was_made_and_what_it_cost(tmp_path: Path) -> None:
    student = tiny_student("single")
    manifest = run(student, tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["config"] == json.loads(json.dumps(manifest["config"]))
    assert manifest["config"]["class_tokens"] == "single" and manifest["config"]["quantizer"]["noise"] == 0.3
    cost = manifest["cost"]
    assert (cost["steps"], cost["samples"], cost["epochs"]) == (10, 160, 2)
    assert cost["wall_s"] > 0 and (cost.get("cpu_hours", 0) > 0 or cost.get("gpu_hours", 0) > 0)
    assert manifest["best_validation_accuracy"] == max(e["validation_accuracy"] for e in manifest["history"])
    opened = open_result(tmp_path / RESULT, CONFIG)
    assert opened.class_tokens == "single"
    assert torch.equal(correctness(opened, toy(40, 2), 3), correctness(student, toy(40, 2), 3))


def test_the_best_epoch_is_kept_and_patience_ends_training(tmp_path: Path, monkeypatch: Any) -> None:
    scores = iter([0.3, 0.5, 0.4, 0.5, 0.9])
    weights = []

    def scripted(student: Any, examples: Any, devices: int, batch: int) -> torch.Tensor:
        weights.append(student.model.head.weight.clone())
        return torch.tensor([next(scores)])

    monkeypatch.setattr(train_module, "correctness", scripted)
    student = tiny_student()
    manifest = run(student, tmp_path, replace(SHORT, epochs=5, patience=2, devices=(2,)))
    assert (manifest["best_epoch"], len(manifest["history"])) == (2, 4)
    assert torch.equal(student.model.head.weight, weights[1])


@pytest.mark.parametrize("poisoned_after", [0, 7])
def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_checkpoint(tmp_path: Path, poisoned_after: int) -> None:
    data = toy(80, 1)

    class Poisoned(Toy):
        calls = 0

        def batch(self, indices: torch.Tensor, augmented: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
            pixels, labels = super().batch(indices, augmented)
            Poisoned.calls += 1
            return (pixels if Poisoned.calls <= poisoned_after else pixels * torch.nan), labels

    student = tiny_student()
    kept = "; last good checkpoint: .*checkpoint.safetensors" if poisoned_after else ""
    where = rf"loss is nan, .* at step {poisoned_after} with learning rate 0\.00\d+"
    with pytest.raises(TestbedError, match=f"{where}: lower training.learning_rate=0.003{kept}$") as caught:
        run(student, tmp_path, examples=Poisoned(data.pixels, data.labels))
    assert "\n" not in str(caught.value)
    if poisoned_after:
        assert all(value.isfinite().all() for value in tensors_of(tmp_path / CHECKPOINT).values())
        assert run(tiny_student(), tmp_path)["cost"]["steps"] == 10, "training resumes from it"


def test_a_collapsed_codebook_is_warned_of(tmp_path: Path) -> None:
    student = tiny_student()
    assert student.quantizer is not None
    student.quantizer.settings = VqSettings(dead_below=0)
    student.quantizer.codebooks_LIKd[1, 0, 1:] = 1e4
    student.quantizer.sums_LIKd.copy_(student.quantizer.codebooks_LIKd)
    with pytest.warns(UserWarning, match=r"codebook of layer 1, group 0 collapsed: it used 1.0 of 8 codewords"):
        manifest = run(student, tmp_path, replace(SHORT, collapse_below=0.2, epochs=1))
    assert manifest["history"][0]["lowest_perplexity"] == pytest.approx(1)


def test_other_settings_do_not_take_up_a_checkpoint(tmp_path: Path) -> None:
    run(tiny_student(), tmp_path, replace(SHORT, epochs=1))
    with pytest.raises(ConfigError, match=r"training.learning_rate=0.1: .*was made with 0.003; set it so, or resume=f"):
        run(tiny_student(), tmp_path, replace(SHORT, epochs=1, learning_rate=0.1))
    with pytest.raises(ConfigError, match=r"quantizer.groups=4: .*was made with 2"):
        run(tiny_student(groups=4), tmp_path, replace(SHORT, epochs=1))


def test_elastic_training_draws_every_number_of_devices_and_other_cuts(tmp_path: Path, monkeypatch: Any) -> None:
    seen = []
    forward = AstraVit.forward
    monkeypatch.setattr(
        AstraVit, "forward", lambda s, x, shares, **k: seen.append(tuple(shares)) or forward(s, x, shares, **k)
    )
    run(tiny_student(), tmp_path / "elastic", replace(SHORT, epochs=4))
    assert {len(shares) for shares in seen} == {1, 2, 4} and len({s for s in seen if len(s) == 4}) > 3
    assert all(sum(shares) == CONFIG.tokens and min(shares) > 0 for shares in seen)
    seen.clear()
    run(tiny_student(), tmp_path / "fixed", replace(SHORT, epochs=1, devices=(3,), random_cuts=False))
    assert set(seen) == {(6, 5, 5)}


def test_examples_vary_only_where_asked(tmp_path: Path) -> None:
    asked = []

    class Watched(Toy):
        def batch(self, indices: torch.Tensor, augmented: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
            asked.append(augmented)
            return super().batch(indices, augmented)

    data = toy(80, 1)
    for augment in (True, False):
        asked.clear()
        settings = replace(SHORT, epochs=1, augment=augment)
        run(tiny_student(), tmp_path / str(augment), settings, examples=Watched(data.pixels, data.labels))
        assert asked == [augment] * 5


def test_distillation_pulls_towards_the_teacher(tmp_path: Path) -> None:
    teacher = AstraVit(tiny_model(seed=5)).eval()
    before = [parameter.clone() for parameter in teacher.parameters()]
    inputs = toy(40, 2).pixels

    def distance(student: Student) -> float:
        with torch.no_grad():
            own, theirs = student.eval()(inputs, [8, 8]).logits, teacher(inputs, [16]).logits
        return (own.log_softmax(-1) - theirs.log_softmax(-1)).abs().mean().item()

    distances = [distance(tiny_student())]
    for weights in (Objective(labels=0, logits=1), Objective(labels=0, states=1, logits=1)):
        student = tiny_student()
        settings = replace(SHORT, epochs=8, devices=(2,), objective=weights)
        run(student, tmp_path / str(weights.states), settings, teacher=teacher)
        distances.append(distance(student))
    assert max(distances[1:]) < 0.7 * distances[0]
    assert all(torch.equal(old, new) for old, new in zip(before, teacher.parameters(), strict=True))


def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    settings = TrainingSettings(learning_rate=2.0, warmup=0.1)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[55] == pytest.approx(1.0) and 0 < rates[99] < 0.01
    assert all(later < earlier for earlier, later in zip(rates[10:], rates[11:], strict=False))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 0}, "training.epochs=0: must be 1 or more"),
        ({"batch": 81}, "training.batch=81: must be 1 to 80, the number of training examples"),
        ({"learning_rate": 0}, "training.learning_rate=0: must be more than 0"),
        ({"devices": (2, 17)}, r"training.devices=\[2,17\]: must be from 1 to 16, the tokens"),
        ({"objective": Objective(labels=0)}, "training.objective.labels=0: must be more than 0, or logits, or states"),
        ({"objective": Objective(temperature=0)}, "training.objective.temperature=0: must be more than 0"),
        ({"objective": Objective(logits=1)}, "distillation needs a teacher"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tiny_student(), tmp_path, replace(SHORT, **changed))


def test_several_devices_need_codebooks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than one device needs codebooks"):
        run(AstraVit(tiny_model()), tmp_path)


def test_settings_are_named_by_their_section_of_the_experiment(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^uncompressed.batch=200: must be 1 to 80, the number of training examples$"
    ):
        run(tiny_student(), tmp_path, replace(SHORT, batch=200), section="uncompressed")


def test_of_two_runs_in_one_folder_the_second_takes_the_result_of_the_first(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, entered, step = [], threading.Event(), train_module._Run._step

    def slow_step(self: Any, indices: torch.Tensor) -> float:
        calls.append(threading.get_ident())
        entered.set()
        time.sleep(0.05)
        return step(self, indices)

    monkeypatch.setattr(train_module._Run, "_step", slow_step)
    students = [tiny_student(), tiny_student()]
    runs = [threading.Thread(target=run, args=(student, tmp_path / "t", SHORT)) for student in students]
    runs[0].start()
    assert entered.wait(10)
    runs[1].start()
    for each in runs:
        each.join()
    assert set(calls) == {calls[0]} and len(calls) == 10
    assert f"waiting for another run, which is making {tmp_path / 't'}\n" in capsys.readouterr().out
    for name, value in students[0].state_dict().items():
        assert torch.equal(value, students[1].state_dict()[name])


def test_outputs_that_are_not_finite_are_no_answers() -> None:
    student = tiny_student()
    data = toy(40, 2)
    data.pixels[7] = torch.inf
    with pytest.raises(TestbedError, match=r"the outputs of example 7 on 2 devices are not finite numbers"):
        correctness(student, data, 2, batch=5)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match=r"file/t cannot be written: .*TESTBED_CACHE names another folder"):
        run(tiny_student(), tmp_path / "file" / "t")
