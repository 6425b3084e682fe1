"""The device's clock: emulated compute times, replay, busy periods, overruns. Time is faked, so load has no effect."""

from __future__ import annotations

import pytest

import testbed.device.clock
from testbed.device.clock import DeviceClock
from testbed.device.spec import Device
from testbed.device.traffic import Traffic
from testbed.work import Kernel, Work


def macs(count: int) -> Work:
    return Work(((Kernel("product", count, 1, 1), 1),))


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
    assert clock.run("compute", macs(1_000_000), lambda: "a") == "a"
    clock.finish()
    assert fake.now == pytest.approx(1000.0, abs=1e-6)
    assert clock.works == [macs(1_000_000)] and clock.overruns == 0


def test_hold_waits_for_the_compute_time_times_time_scale(fake: FakeTime) -> None:
    clock = DeviceClock("hold", device=Device(1e6), time_scale=2.0)
    clock.run("encode", macs(20_000), lambda: fake.sleep(0.01))
    clock.finish()
    assert fake.now - 1000.0 == pytest.approx(0.04)
    assert clock.seconds["encode"] == pytest.approx(0.04) and clock.overruns == 0


def test_replay_returns_the_recorded_outputs_without_computing(fake: FakeTime) -> None:
    clock = DeviceClock()
    outputs = clock.record(lambda: [clock.run("compute", macs(1), object) for _ in range(3)])
    clock.mode, clock.device = "replay", Device(1e3)
    for _ in range(2):
        clock.restart()
        assert [clock.run("compute", macs(1), lambda: pytest.fail("computed")) for _ in range(3)] == outputs


def test_an_overrun_is_counted_once_for_a_busy_period(fake: FakeTime) -> None:
    clock, traffic = DeviceClock("hold", device=Device(1e6)), Traffic()
    clock.restart(traffic)
    clock.run("compute", macs(1_000), lambda: fake.sleep(0.02))
    clock.run("compute", macs(1_000), lambda: None)
    traffic.block(fake.now - 0.0001, fake.now, fake.now)  # a message was awaited, however briefly: a new busy period
    clock.run("compute", macs(20_000), lambda: fake.sleep(0.001))
    clock.finish()
    assert clock.overruns == 1 and clock.late_s == pytest.approx(0.018)
    clock.restart()
    assert clock.overruns == 0 and clock.late_s == 0


def test_a_short_overrun_is_compensated_within_the_busy_period(fake: FakeTime) -> None:
    clock = DeviceClock("hold", device=Device(1e6))
    clock.run("decode", macs(0), lambda: fake.sleep(0.003))
    clock.run("compute", macs(20_000), lambda: fake.sleep(0.001))
    clock.finish()
    assert clock.overruns == 0
    assert fake.now - 1000.0 == pytest.approx(0.02)


def test_handing_a_message_over_takes_no_device_time(fake: FakeTime) -> None:
    clock = DeviceClock("hold", device=Device(1e6))
    for _ in range(3):
        clock.run("compute", macs(20_000), lambda: None)
        fake.sleep(0.0015)  # nothing was awaited
    clock.finish()
    assert fake.now - 1000.0 == pytest.approx(0.06 + 0.0015)  # the time after the last segment is after the pass


def test_waiting_takes_device_time(fake: FakeTime) -> None:
    clock, traffic = DeviceClock("hold", device=Device(1e6)), Traffic()
    clock.restart(traffic)
    clock.run("compute", macs(20_000), lambda: None)
    begin = fake.now
    fake.sleep(0.0015)
    traffic.block(begin, fake.now, fake.now)
    fake.sleep(0.0002)  # until this machine has woken the device up
    clock.run("compute", macs(20_000), lambda: None)
    clock.finish()
    assert fake.now - 1000.0 == pytest.approx(0.04 + 0.0015)
    assert clock.made_up_s == pytest.approx(0.0002, abs=1e-6) and clock.overruns == 0
    assert clock.seconds["compute"] == pytest.approx(0.04)


def test_what_this_machine_needs_between_segments_is_made_up_for_however_long(fake: FakeTime) -> None:
    clock = DeviceClock(device=Device(1e6), time_scale=2.0)
    clock.record(lambda: [clock.run("compute", macs(0), lambda: None) for _ in range(3)])
    clock.mode = "replay"
    clock.restart()
    begin = fake.now
    for _ in range(3):
        clock.run("compute", macs(20_000), lambda: None)
        fake.sleep(0.01)
    clock.finish()
    assert fake.now - begin == pytest.approx(3 * 0.04 + 0.01)
    assert clock.made_up_s == pytest.approx(2 * 0.01, abs=1e-6) and clock.late_s == pytest.approx(0, abs=1e-6)
    assert clock.seconds["compute"] == pytest.approx(3 * 0.04)


def test_a_device_that_is_kept_from_its_work_is_late(fake: FakeTime) -> None:
    clock = DeviceClock("hold", device=Device(1e6))
    clock.run("compute", macs(20_000), lambda: None)
    fake.sleep(0.1)  # longer than the next segment
    clock.run("compute", macs(20_000), lambda: None)
    clock.finish()
    assert clock.late_s == pytest.approx(0.08) and clock.overruns == 1


@pytest.mark.parametrize("time_scale", [1.0, 4.0])
def test_the_tolerance_of_overruns_is_time_of_the_device(fake: FakeTime, time_scale: float) -> None:
    for late_s, overruns in ((0.4e-3, 0), (0.7e-3, 1)):
        clock = DeviceClock("hold", device=Device(1e6), time_scale=time_scale)
        clock.run("compute", macs(1_000), lambda late_s=late_s: fake.sleep(time_scale * (1e-3 + late_s)))
        clock.finish()
        assert clock.overruns == overruns


def test_time_after_the_last_segment_is_no_overrun(fake: FakeTime) -> None:
    clock = DeviceClock(device=Device(1e6))
    clock.record(lambda: clock.run("compute", macs(10_000), lambda: None))
    clock.mode = "replay"
    clock.restart()
    fake.sleep(1)
    output = clock.run("compute", macs(10_000), lambda: None)
    assert output is None and clock.overruns == 0
    fake.now += 1.0  # time after the pass does not count
    clock.finish()
    assert clock.overruns == 0
