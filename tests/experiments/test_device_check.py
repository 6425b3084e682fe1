"""The check of the compute model, on a tiny model: which segments there are, what they are called, and their rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch

from experiments import device_check
from experiments.device_check import example_codebooks
from experiments.measurement import segment_times
from experiments.measurement.own_device import OwnDevice
from experiments.measurement.segment_times import TimedClock, describe
from testbed.compressed_collectives import summed_by_transport
from testbed.config.load import load_config
from testbed.config.schema import DeviceCheckConfig
from testbed.device.spec import Device
from testbed.errors import ConfigError, EnvironmentFault, TestbedError
from testbed.methods import load_method, method_names
from testbed.results.run_folder import RunFolder
from testbed.results.schema import SEGMENT
from testbed.work import NO_WORK, count_kernels, product
from tests.methods.small import pixels, small_model

SMALL = ["model=vit_tiny", "model.layers=2", "tokens=16", "devices=2", "repeats=1", "block.blocks=1"]
SMALL += ["astra.groups=[1,4]", "astra.codebook_size=16"]


def config(*words: str) -> DeviceCheckConfig:
    return cast(DeviceCheckConfig, load_config(["+experiment=device_check", *SMALL, *words]))


def test_every_kind_of_segment_of_every_method_has_a_row(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "device_check", "abc", SEGMENT)
    assert device_check.run(config("profile=gtx1660ti"), "", folder) == 0
    rows = folder.rows()
    assert (rows["status"] == "ok").all() and (rows["measured_us"] > 0).all() and (rows["runs"] >= 1).all()
    owners = set(rows["segment"].str.partition(":")[0])
    assert owners == {*method_names(), "fp32", "fp16", "int8", "int4", "topk"}
    some = {"int8: encode", "topk: join", "int4: sum", "astra: encode", "tensor: after attention"}
    assert some <= set(rows["segment"])
    untimed = rows[~rows["computes"]]
    assert set(untimed["segment"]) == {"fp32: summed by transport"} and untimed["predicted_us"].max() > 0
    whole = rows[rows["segment"] == "single: whole model"].iloc[0]
    shape = config().model.shape(16)
    assert whole["macs"] == load_method("single").macs(shape, 0, 1) and whole["devices"] == 1
    assert set(rows["device_profile"]) == {"gtx1660ti"}
    assert folder.runs()[0]["device_profile"]["name"] == "gtx1660ti"


def test_segments_of_a_pass_are_those_that_the_formulas_count() -> None:
    model = small_model("plain")
    method = load_method("ring", codec="int8")
    shards = [method.shard(model, rank, 2) for rank in range(2)]
    times = segment_times.segment_times(method, shards, pixels(model), 3, lambda: None)
    ran = count_kernels(segment.work for segment, seconds in times.items() for _ in range(len(seconds) // 3))
    expected = count_kernels(method.work(model.shape, rank, 2) for rank in range(2))
    assert ran == expected


def test_a_run_continues_with_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path, "device_check", "abc", SEGMENT)
    assert device_check.run(config("profile=gtx1660ti", "methods=[single]"), "", folder) == 0
    assert device_check.run(config("profile=gtx1660ti", "methods=[single,prism]", "prism.codec=fp32"), "", folder) == 0
    assert "1 points are finished already; 1 to measure" in capsys.readouterr().out
    assert len(folder.rows()["variant"].unique()) == 2


def test_a_point_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = device_check.segment_times

    def some_fail(method, *rest):  # type: ignore[no-untyped-def]
        if method.name == "tensor":
            raise ConfigError("tensor.sync", "ring", "is not today's")
        return real(method, *rest)

    monkeypatch.setattr(device_check, "segment_times", some_fail)
    folder = RunFolder(tmp_path, "device_check", "abc", SEGMENT)
    words = ("profile=gtx1660ti", "methods=[tensor,single]", "tensor.sync=ring", "tensor.codec=fp32")
    assert device_check.run(config(*words), "", folder) == 1
    rows = folder.rows().set_index("variant")
    assert rows.loc["tensor", "error"] == "tensor.sync=ring: is not today's"
    assert rows.loc["single", "status"] == "ok"


def test_without_a_profile_the_machine_is_measured_and_the_profile_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    profile = config("profile=gtx1660ti").profiles["gtx1660ti"]

    def measured(name: str, device: str, report: object) -> OwnDevice:
        asked.append((name, device))
        return OwnDevice(profile, "a processor", 0.0)

    monkeypatch.setattr(device_check, "measure", measured)
    folder = RunFolder(tmp_path, "device_check", "abc", SEGMENT)
    assert device_check.run(config("methods=[single]"), "", folder) == 0
    assert asked == [("this_machine", "cpu")]
    kept = folder.path / "device_profile.yaml"
    assert kept.read_text().startswith("# Measured on a processor.")
    assert device_check.run(config("methods=[single,prism]", "prism.codec=fp32"), "", folder) == 0
    assert len(asked) == 1 and set(folder.rows()["device_profile"]) == {"gtx1660ti"}  # the one that is kept
    kept.write_text("name: [")
    with pytest.raises(TestbedError, match="device_profile.yaml is not a profile of a device .*resume=false"):
        device_check.run(config("methods=[single,ring]"), "", folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="processor=cuda: torch finds no GPU here"):
        device_check.run(config("processor=cuda"), "", RunFolder(tmp_path, "device_check", "abc", SEGMENT))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
def test_a_gpu_computes_all_methods_without_codebooks(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "device_check", "abc", SEGMENT)
    assert device_check.run(config("profile=gtx1660ti", "processor=cuda"), "", folder) == 0
    rows = folder.rows()
    assert (rows["status"] == "skipped").equals(rows["variant"].str.startswith("astra"))


def test_codebooks_are_left_out_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    folder = RunFolder(tmp_path, "device_check", "abc", SEGMENT)
    assert device_check.run(config("profile=gtx1660ti", "processor=cuda", "methods=[astra]"), "", folder) == 0
    assert set(folder.rows()["status"]) == {"skipped"}
    assert "run on the processor; processor=cpu checks them" in folder.rows()["error"].iloc[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["profile=nope"], "profile=nope: unknown; allowed: gtx1660ti"),
        (["processor=gpu"], "processor=gpu: must be one of cpu, cuda"),
        (["methods=[pipeline]", "devices=3"], "devices=3: pipeline needs 1 to 2 devices"),
        (["methods=[nope]"], "methods=nope: unknown"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said.replace('[', chr(92) + '[')}"):
        config(*words)


def test_settings_that_exclude_each_other_are_left_out() -> None:
    labels = {method.label for method, _, _ in device_check._points(config())}
    assert "astra G=1 K=16 lut+dedup+overlap" in labels and "astra G=4 K=16 lut+dedup+overlap" not in labels
    assert "astra G=4 K=16 paper" in labels


def test_names_are_those_of_functions_after_the_method_or_the_codec() -> None:
    tensor, work = load_method("tensor", codec="int8"), product(1, 2, 3)
    assert describe(tensor, work, partial(partial(example_codebooks))).name == "tensor: example codebooks"
    assert describe(tensor, work, partial(tensor.codec.encode, None)).name == "int8: encode"  # type: ignore[attr-defined]
    assert describe(tensor, work, partial(torch.nn.LayerNorm(2), None)).name == "tensor: LayerNorm"
    assert describe(tensor, work, lambda: None).name.startswith("tensor: test names are those")
    assert describe(load_method("astra"), work, partial(summed_by_transport, None)).computes is False


def test_a_clock_computes_in_one_thread_and_without_gradients() -> None:
    with ThreadPoolExecutor(1) as computing:
        clock = TimedClock(load_method("single"), computing, lambda: None)
        assert clock.run("compute", NO_WORK, torch.is_grad_enabled) is False
        (segment, seconds) = clock.seen[0]
    assert segment.work == NO_WORK and 0 < seconds < 1


def test_all_tokens_of_the_example_have_codewords_of_their_own() -> None:
    model = small_model("plain")
    method = load_method("astra", groups=1, codebook_size=32, optimizations="lut+dedup+overlap")
    books = example_codebooks(model, pixels(model), method.codebook_spec)  # type: ignore[arg-type]
    assert books.shape == (4, 1, 32, 48)
    with torch.no_grad():
        tokens_TD = model.embed(pixels(model))[0, 1:]
    nearest = torch.cdist(tokens_TD, books[0, 0]).argmin(1)
    assert nearest.tolist() == list(range(len(tokens_TD)))


def test_predictions_are_those_of_the_profile() -> None:
    device = Device(macs_per_s=1e9, launch_s=1e-6)
    segment = describe(load_method("single"), product(10, 100, 1000), lambda: None)
    row = device_check._row(segment, device, [3e-3, 1e-3, 2e-3])
    assert row["predicted_us"] == pytest.approx(1001.0) and row["measured_us"] == pytest.approx(2000.0)
    assert (row["fastest_us"], row["slowest_us"], row["runs"]) == (pytest.approx(1000), pytest.approx(3000), 3)
