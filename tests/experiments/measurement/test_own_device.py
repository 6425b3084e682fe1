"""This machine as a device profile, measured with a tiny budget."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

from experiments.measurement import host_costs, kernel_rates, own_device
from experiments.measurement.host_costs import exchange_s
from experiments.measurement.kernel_rates import Timer, shares
from experiments.measurement.own_device import Budget, OwnDevice, measure, profile_text
from testbed.config.device_profile import DeviceProfile, ReferenceModel
from testbed.config.fields import is_curve
from testbed.errors import EnvironmentFault
from testbed.work import product

# Of so much arithmetic that launches, measured on a busy machine, do not take longer than it.
TINY = ReferenceModel(layers=2, hidden=384, heads=6, patch=8, classes=10, tokens=64)


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("ROWS", (1, 16)), ("INNER", (8, 64)), ("COLUMNS", (96,)), ("ATTENTION", ((5, 9),))):
        monkeypatch.setattr(kernel_rates, name, value)
    for name, value in (("WIDTH", 96), ("SETS", 2), ("INNER_ROWS", 16)):
        monkeypatch.setattr(kernel_rates, name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other while other tests run
    yield
    torch.set_num_threads(threads)


def measured(device: str, report: Callable[[int, int], None] = lambda done, total: None) -> OwnDevice:
    return measure("my_board", device, report, Budget(0.0, (TINY,), exchanges=20))


def check(found: OwnDevice) -> None:
    profile = found.profile
    assert is_curve(profile.row_efficiency) and is_curve(profile.inner_efficiency)
    assert 0 < profile.attention_efficiency <= 1
    for key in ("reference_s", "memory_gb_per_s", "memory_gb", "launch_us", "exchange_us", "staging_gb_per_s"):
        assert getattr(profile, key) > 0, key
    assert profile.emulated().seconds(product(16, 96, 96)) > 0


def test_a_profile_is_measured_with_its_progress(few_figures: None) -> None:
    seen: list[tuple[int, int]] = []
    found = measured("cpu", lambda done, total: seen.append((done, total)))
    check(found)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1)) and seen[-1][0] == seen[-1][1]
    assert "threads" in found.machine and socket.gethostname() not in profile_text(found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
def test_a_gpu_is_measured(few_figures: None) -> None:
    check(measured("cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_one_line() -> None:
    with pytest.raises(EnvironmentFault, match="device=cuda: torch finds no GPU here"):
        measured("cuda")


def test_figures_that_contradict_each_other_are_one_line(few_figures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_device, "_reference", lambda device, references: (TINY, 1e-9))
    with pytest.raises(EnvironmentFault, match="contradicts itself .*measure again when less runs"):
        measured("cpu")


def test_the_file_says_what_is_measured_and_whether_the_machine_was_busy() -> None:
    profile = DeviceProfile("b", TINY, 0.012345, 10.0, 8.0, 3.5, 12.25, 7.0, "0.5@1 1@8", "1@8", 0.9)
    text = profile_text(OwnDevice(profile, "a processor", 1.0))
    assert "reference_s: 0.012345  # s, " in text and "1% of the cores meanwhile." in text
    assert all(len(line) <= 120 for line in text.splitlines())
    keys = [line for line in text.splitlines() if not line.startswith(("#", "name", "reference_model"))]
    assert len(keys) == 9 and all("# " in line for line in keys)
    assert "machine was busy, so measure again" in profile_text(OwnDevice(profile, "a processor", 60.0))
    assert "not known" in profile_text(OwnDevice(profile, "a processor", None))


def test_a_curve_keeps_the_share_of_the_smaller_size_where_a_larger_one_is_slower() -> None:
    assert shares({64: 8.0, 1: 2.0, 128: 6.0, 256: 10.0}) == ((1, 0.2), (64, 0.8), (128, 0.8), (256, 1.0))


def test_a_smaller_reference_is_chosen_where_the_first_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    smaller = replace(TINY, tokens=4)
    times = {TINY.tokens: 10.0, 4: 0.1}

    def tries(self: Timer, calls: list[Any]) -> list[float]:
        return [times[calls[0]().shape[0]]]

    monkeypatch.setattr(Timer, "tries", tries)
    monkeypatch.setattr(own_device, "_model", lambda reference: torch.nn.Module())
    monkeypatch.setattr(
        torch.nn.Module, "forward", lambda self, pixels: torch.empty(pixels[0, 0].numel() // TINY.patch**2), False
    )
    found, seconds = own_device._reference("cpu", [TINY, smaller])
    assert (found, seconds) == (smaller, 0.1)
    times[4] = 20.0
    assert own_device._reference("cpu", [TINY, smaller]) == (smaller, 20.0)  # the last one, however long it takes


def test_an_exchange_takes_microseconds_and_leaves_no_process_and_no_socket() -> None:
    own = psutil.Process()
    before = {child.pid for child in own.children()}
    assert 1e-7 < exchange_s(20) < 0.1
    assert {child.pid for child in own.children()} <= before
    assert not [at for at in own.net_connections("tcp") if at.status == psutil.CONN_LISTEN]


def test_a_process_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_costs, "OTHER", "this")  # ends without a connection
    monkeypatch.setattr(host_costs, "TIMEOUT_S", 0.5)
    with pytest.raises(EnvironmentFault, match=r"no TCP exchange with another process on 127\.0\.0\.1"):
        exchange_s(1)
