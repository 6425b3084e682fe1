"""Time scales of points: large enough for links and messages, and as large as the time budget allows."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.cost_model.point_costs import PointCosts
from experiments.measurement import time_scale
from experiments.measurement.time_scale import (
    CORE_MBPS,
    DISTORTION,
    HOST_EXCHANGE_S,
    LONGEST_BUDGETS,
    SCALES,
    SLOWEST_SCALE,
    PassPlan,
    fitting_scale,
    plan_passes,
)
from testbed.config.load import load_config
from testbed.config.schema import LatencyConfig
from testbed.grid import Point, points

CORES = 2


def plan(point: Point, config: LatencyConfig, mode: str) -> PassPlan:
    return plan_passes(PointCosts(point, config), mode)


@cache
def sweep(*words: str) -> LatencyConfig:
    config = load_config(["+experiment=device_sweep", "methods=[single,tensor,sequence,astra]", *words])
    assert isinstance(config, LatencyConfig)
    return config


@given(st.floats(0.01, 1000), st.integers(0, 2000), st.floats(0, 1e-3), st.floats(0, 10_000), st.floats(0.05, 10))
def test_the_scale_is_the_slowest_of_the_budget_and_keeps_every_limit(
    latency_s: float, rounds: int, exchange_s: float, links_mbps: float, pass_budget_s: float
) -> None:
    scale = fitting_scale(latency_s, rounds, exchange_s, links_mbps, pass_budget_s, CORES)

    def keeps(scale: float) -> bool:
        shaped = links_mbps / scale <= CORE_MBPS * CORES * (1 + 1e-9)
        late_s = rounds * (HOST_EXCHANGE_S / scale - exchange_s)
        return shaped and late_s <= DISTORTION * latency_s * (1 + 1e-9)

    def affordable(scale: float) -> bool:
        return scale <= (SLOWEST_SCALE if rounds else 1) and scale * latency_s <= pass_budget_s * (1 + 1e-9)

    assert keeps(scale) or scale == SCALES[-1]
    faster, slower = ([other for other in SCALES if other < scale], [other for other in SCALES if other > scale])
    if affordable(scale):
        assert not slower or not affordable(slower[0] * (1 + 1e-6))
    else:  # larger than the budget only because the limits require it
        assert not faster or not keeps(faster[-1] * (1 - 1e-6))


def test_points_of_a_sweep_are_planned_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_scale, "usable_cores", lambda: CORES)
    config = sweep("devices=4", "bandwidths=[10,500]")
    plans = {point.label: plan(point, config, "replay") for point in points(config)}
    slow, fast, short, single = (
        plans[f"{name}, 1024 tokens, {mbps} Mbps"]
        for name, mbps in (
            ("tensor, 4 devices", 10),
            ("tensor int4, 4 devices", 500),
            ("astra G=1 K=1024 auto, 4 devices", 10),
            ("single, 1 device", 10),
        )
    )
    assert slow.time_scale < 1 and (slow.repeats, slow.warmups) == (1, 0)  # a minute and a half by itself
    assert fast.time_scale > 1  # four links of 500 Mbps are more than two cores shape
    assert short.time_scale == SLOWEST_SCALE and short.repeats == config.repeats  # a tenth of a second by itself
    assert single.time_scale == 1 and single.repeats == config.repeats


@pytest.mark.parametrize("mode", ["hold", "execute"])
def test_real_arithmetic_runs_at_time_scale_1(mode: str) -> None:
    for point in points(sweep("devices=4", "bandwidths=10")):
        assert plan(point, sweep("devices=4", "bandwidths=10"), mode).time_scale == 1


def test_a_number_is_for_all_points() -> None:
    config = sweep("devices=2", "bandwidths=[10,500]", "time_scale=8")
    for point in points(config):
        found = plan(point, config, "replay")
        assert found.time_scale == 8
        assert 1 <= found.repeats <= config.repeats
        assert found.warmups == (found.repeats > 1)
        affordable = LONGEST_BUDGETS if found.repeats == 2 else 1.0
        assert found.repeats == 1 or (found.repeats + 1) * found.pass_s <= affordable * config.point_budget_s
        slower = plan(point, dataclasses.replace(config, time_scale=16.0), "replay")
        assert slower.pass_s == 2 * found.pass_s


def test_a_machine_of_many_cores_shapes_no_more_than_one_core_can_take_in() -> None:
    few, many = (fitting_scale(0.1, 10, 250e-6, 4000.0, 10.0, cores) for cores in (time_scale.MOST_CORES, 64))
    assert few == many > 1
