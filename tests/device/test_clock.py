"""The device's clock: emulated compute times, replay, busy periods, overruns. Time is faked, so load has no effect."""

from __future__ import annotations

import pytest

import testbed.device.clock
from testbed.device.clock import DeviceClock
from testbed.device.spec import Device
from testbed.device.traffic import Traffic


class FakeTime:
    """Time that passes only in sleeps and in fake work, and by one nanosecond at each reading."""

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


def test_hold_waits_for_the_compute_time_times_time_scale(fake: FakeTime) -> None:
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


def test_an_overrun_is_counted_once_for_a_busy_period(fake: FakeTime) -> None:
    clock, traffic = DeviceClock("hold", device=Device(1e6)), Traffic()
    clock.restart(traffic)
    clock.run("compute", 1_000, lambda: fake.sleep(0.02))
    clock.run("compute", 1_000, lambda: None)
    traffic.wait_s += 0.0001  # a message was awaited, however briefly: a new busy period
    clock.run("compute", 20_000, lambda: fake.sleep(0.001))
    clock.finish()
    assert clock.overruns == 1 and clock.late_s == pytest.approx(0.018)
    clock.restart()
    assert clock.overruns == 0 and clock.late_s == 0


def test_a_short_overrun_is_compensated_within_the_busy_period(fake: FakeTime) -> None:
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
    assert fake.now - 1000.0 == pytest.approx(0.06 + 0.0015)  # the time after the last segment is after the pass


def test_waiting_takes_device_time(fake: FakeTime) -> None:
    clock, traffic = DeviceClock("hold", device=Device(1e6)), Traffic()
    clock.restart(traffic)
    clock.run("compute", 20_000, lambda: None)
    fake.sleep(0.0015)
    traffic.wire_s += 0.0015
    clock.run("compute", 20_000, lambda: None)
    fake.sleep(0.005)  # longer than ADJACENT_S
    clock.run("compute", 20_000, lambda: None)
    clock.finish()
    assert fake.now - 1000.0 == pytest.approx(0.06 + 0.0015 + 0.005)
    assert clock.overruns == 0


def test_time_after_the_last_segment_is_no_overrun(fake: FakeTime) -> None:
    clock = DeviceClock(device=Device(1e6))
    clock.record(lambda: clock.run("compute", 10_000, lambda: None))
    clock.mode = "replay"
    clock.restart()
    fake.sleep(1)
    output = clock.run("compute", 10_000, lambda: None)
    assert output is None and clock.overruns == 0
    fake.now += 1.0  # time after the pass does not count
    clock.finish()
    assert clock.overruns == 0
