"""The device's clock: slots, replay, stretches, overruns. Time is faked: a busy machine changes nothing."""

from __future__ import annotations

import pytest

import testbed.device.clock
from testbed.device.clock import DeviceClock
from testbed.device.spec import Device
from testbed.device.traffic import Traffic


class FakeTime:
    """Time that passes only when somebody sleeps or works, and by a nanosecond when somebody looks."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 1e-9
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    time = FakeTime()
    monkeypatch.setattr(testbed.device.clock, "time", time)
    return time


def test_execute_adds_no_time_and_counts(fake: FakeTime) -> None:
    clock = DeviceClock("execute", device=Device(1.0))
    assert clock.run("compute", 1_000_000, lambda: "a") == "a"
    clock.finish()
    assert fake.now == pytest.approx(1000.0, abs=1e-6) and clock.macs == 1_000_000 and clock.overruns == 0


def test_hold_waits_out_the_slot_and_time_scale_stretches_it(fake: FakeTime) -> None:
    clock = DeviceClock("hold", device=Device(1e6), time_scale=2.0)
    clock.run("encode", 20_000, lambda: fake.sleep(0.01))
    clock.finish()
    assert fake.now - 1000.0 == pytest.approx(0.04)
    assert clock.seconds["encode"] == pytest.approx(0.04) and clock.overruns == 0


def test_replay_returns_the_recorded_outputs_without_computing(fake: FakeTime) -> None:
    clock = DeviceClock()
    outputs = clock.record(lambda: [clock.run("compute", 1, object) for _ in range(3)])
    clock.mode, clock.device = "replay", Device(1e3)
    for _ in range(2):
        clock.restart()
        assert [clock.run("compute", 1, lambda: pytest.fail("computed")) for _ in range(3)] == outputs


def test_an_overrun_is_counted_once_for_a_stretch(fake: FakeTime) -> None:
    clock, traffic = DeviceClock("hold", device=Device(1e6)), Traffic()
    clock.restart(traffic)
    clock.run("compute", 1_000, lambda: fake.sleep(0.02))
    clock.run("compute", 1_000, lambda: None)
    traffic.wait_s += 0.0001  # a message was awaited, however shortly: a new stretch
    clock.run("compute", 20_000, lambda: fake.sleep(0.001))
    clock.finish()
    assert clock.overruns == 1 and clock.late_s == pytest.approx(0.018)
    clock.restart()
    assert clock.overruns == 0 and clock.late_s == 0


def test_a_short_overrun_is_made_up_for_within_the_stretch(fake: FakeTime) -> None:
    clock = DeviceClock("hold", device=Device(1e6))
    clock.run("decode", 0, lambda: fake.sleep(0.003))
    clock.run("compute", 20_000, lambda: fake.sleep(0.001))
    clock.finish()
    assert clock.overruns == 0
    assert fake.now - 1000.0 == pytest.approx(0.02)


def test_handing_a_message_over_takes_no_device_time(fake: FakeTime) -> None:
    clock = DeviceClock("hold", device=Device(1e6))
    for _ in range(3):
        clock.run("compute", 20_000, lambda: None)
        fake.sleep(0.0015)  # nothing was awaited
    clock.finish()
    assert fake.now - 1000.0 == pytest.approx(0.06 + 0.0015)  # what is after the last slot is after the pass


def test_what_is_awaited_takes_device_time(fake: FakeTime) -> None:
    clock, traffic = DeviceClock("hold", device=Device(1e6)), Traffic()
    clock.restart(traffic)
    clock.run("compute", 20_000, lambda: None)
    fake.sleep(0.0015)
    traffic.wire_s += 0.0015
    clock.run("compute", 20_000, lambda: None)
    fake.sleep(0.005)  # too long to be handing over, whatever it was
    clock.run("compute", 20_000, lambda: None)
    clock.finish()
    assert fake.now - 1000.0 == pytest.approx(0.06 + 0.0015 + 0.005)
    assert clock.overruns == 0


def test_an_overrun_of_the_last_stretch_counts(fake: FakeTime) -> None:
    clock = DeviceClock(device=Device(1e6))
    clock.record(lambda: clock.run("compute", 10_000, lambda: None))
    clock.mode = "replay"
    clock.restart()
    fake.sleep(1)
    slot = clock.run("compute", 10_000, lambda: None)
    assert slot is None and clock.overruns == 0
    fake.now += 1.0  # time after the pass is not the clock's business
    clock.finish()
    assert clock.overruns == 0
