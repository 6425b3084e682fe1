from __future__ import annotations

import dataclasses
import itertools
from functools import cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from testbed.config.load import load_config
from testbed.config.schema import LatencyConfig
from testbed.grid import batches, config_signature, points
from testbed.results.schema import LATENCY


@cache
def smoke() -> LatencyConfig:
    return load_config(["+experiment=smoke", "device_mix=gtx1660ti+half_gtx1660ti"])


@st.composite
def configs(draw: st.DrawFn) -> LatencyConfig:
    def some(items: list[Any]) -> list[Any]:
        return draw(st.lists(st.sampled_from(items), min_size=1, unique=True))

    groups = {"groups": some([1, 16, 32]), "codebook_size": 1024, "optimizations": some(["paper", "auto"])}
    methods = some(["single", "tensor", "sequence", "pipeline", "astra"])
    return dataclasses.replace(
        smoke(),
        methods=methods,
        devices=some([1, 2, 3, 4]),
        bandwidths=some([10.0, 20.0, 50.0, 500.0]),
        tokens=some([64, 128, 256]),
        partition=some(["equal", "speed"]),
        seed=draw(st.integers(0, 2**32 - 1)),
        settings={name: groups if name == "astra" else {} for name in methods},
    )


@given(configs())
def test_each_combination_is_there_once(config: LatencyConfig) -> None:
    grid = points(config)
    axes = config.settings.get("astra", {"groups": [], "optimizations": []})
    astra = len(axes["groups"]) * len(axes["optimizations"])
    variants = sum(astra if name == "astra" else 1 for name in config.methods)
    split = variants - ("single" in config.methods)
    links = len(config.bandwidths) * len(config.tokens)
    several = split * len(config.devices) * len(config.partition)
    assert len(grid) == links * (several + variants - split)
    assert len({point.key for point in grid}) == len({point.signature for point in grid}) == len(grid)


@given(configs())
def test_a_cluster_is_brought_up_once_for_each_number_of_devices(config: LatencyConfig) -> None:
    grid = batches(config)
    sizes = [size for size, _ in grid]
    assert len(set(sizes)) == len(sizes)
    for size, batch in grid:
        assert batch
        assert all(point.devices == (1 if point.method == "single" else size) for point in batch)
        in_order = [tokens for tokens, _ in itertools.groupby(point.tokens for point in batch)]
        assert len(in_order) == len(set(in_order))  # each is loaded once


@given(configs(), st.integers(0, 2**32 - 1))
def test_order_depends_on_the_seed_alone(config: LatencyConfig, seed: int) -> None:
    assert points(config) == points(dataclasses.replace(config))
    other = points(dataclasses.replace(config, seed=seed))
    assert sorted(map(str, other)) == sorted(map(str, points(config)))


@given(configs())
def test_signature_is_of_what_is_measured(config: LatencyConfig) -> None:
    def same(**changes: Any) -> bool:
        return config_signature(dataclasses.replace(config, **changes)) == config_signature(config)

    assert same(resume=False, results_dir="elsewhere", bandwidths=config.bandwidths[::-1], methods=config.methods[::-1])
    assert not same(repeats=config.repeats + 1)
    assert not same(bandwidths=[*config.bandwidths, 1.0])
    assert not same(model=dataclasses.replace(config.model, layers=7))


def test_signatures_are_the_same_in_every_process() -> None:
    single = next(point for point in points(smoke()) if point.method == "single" and point.bandwidth_mbps == 20)
    assert single.signature == "0d9e61b929"  # changes only when points are described differently


def test_points_fill_the_key_columns_and_name_themselves() -> None:
    point = next(point for point in points(smoke()) if point.settings and dict(point.settings)["groups"] == 16)
    assert tuple(point.columns) == LATENCY.keys
    assert (point.columns["groups"], point.columns["codebook_size"], point.columns["codec"]) == (16, 1024, "vq")
    by_speed = dataclasses.replace(point, speeds=(1.0, 0.5))
    assert [each.columns["partition"] for each in (point, by_speed)] == ["equal", "speed"]
    assert by_speed.load().shares(6, 2) == [4, 2] and point.load().shares(6, 2) == [3, 3]
    assert ", 2 devices by speed, " in by_speed.label
    assert point.load().groups == 16
    assert point.columns["settings"] == ""
    assert point.label.endswith(f", 2 devices, 64 tokens, {point.bandwidth_mbps:g} Mbps")
