"""``make profile``: its command line, and the file that it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments import profile
from experiments.measurement import own_device
from experiments.measurement.own_device import OwnDevice
from testbed.config import fields
from testbed.config.device_profile import DeviceProfile, ReferenceModel
from testbed.config.load import load_config

FOUND = OwnDevice(
    DeviceProfile(
        name="my_board",
        reference_model=ReferenceModel(layers=12, hidden=768, heads=12, patch=16, classes=1000, tokens=256),
        reference_s=0.5,
        memory_gb_per_s=9.5,
        memory_gb=25.28,
        launch_us=4.0,
        exchange_us=8.0,
        staging_gb_per_s=5.0,
        row_efficiency="0.1@1 1@256",
        inner_efficiency="0.2@8 1@768",
        attention_efficiency=0.5,
    ),
    "a processor, 2 threads, torch 2, 2026-01-01",
    2.0,
)


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(fields.CONF, tmp_path / "conf")
    monkeypatch.setattr(fields, "CONF", tmp_path / "conf")
    monkeypatch.setattr(own_device, "measure", lambda name, device, report: FOUND)
    return tmp_path / "conf"


def test_the_file_is_a_profile_that_runs_accept(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main(["name=my_board"]) == 0
    assert (conf / "device" / "my_board.yaml").read_text() in capsys.readouterr().out
    for word in ("device=my_board", "device_mix=my_board+gtx1660ti"):
        config = load_config(["+experiment=bandwidth_sweep", word])
        found = config.profiles.get("my_board", config.device)  # type: ignore[attr-defined]
        assert found == FOUND.profile
    assert load_config(["+experiment=device_check", "profile=my_board"]).profiles == {"my_board": FOUND.profile}  # type: ignore[attr-defined]


def test_a_file_is_replaced_only_with_force(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (conf / "device" / "gtx1660ti.yaml").read_text()
    assert profile.main(["name=gtx1660ti"]) == 2
    said = "profile: name=gtx1660ti: conf/device/ has this profile already; force=true replaces it\n"
    assert capsys.readouterr().err == said
    assert (conf / "device" / "gtx1660ti.yaml").read_text() == before
    assert profile.main(["name=gtx1660ti", "force=true"]) == 0
    assert (conf / "device" / "gtx1660ti.yaml").read_text() != before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name=: must be a name of lower-case letters"),
        (["name="], "name=: must be a name of lower-case letters"),
        (["name=My-Board"], "name=My-Board: must be a name"),
        (["name=../x"], "name=../x: must be a name"),
        (["name=on"], "name=on: must be a name"),
        (["name=1"], "name=1: must be a name"),
        (["name=a\nb"], "name=a\\nb: must be a name"),
        (["my_board"], "my_board=: unknown"),
        (["nam=x"], "nam=x: unknown; did you mean name?"),
        (["name=x", "device=gpu"], "device=gpu: must be one of cpu, cuda"),
        (["name=x", "force=1"], "force=1: must be one of true, false"),
    ],
)
def test_bad_input_is_one_line(
    conf: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> OwnDevice:
        raise AssertionError("measures although the command line is wrong")

    monkeypatch.setattr(own_device, "measure", refuse)
    before = sorted(conf.rglob("*"))
    assert profile.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"profile: {said}") and error.count("\n") == 1
    assert sorted(conf.rglob("*")) == before
