"""Latency of each method variant at each device count and bandwidth: the bandwidth sweep and its relatives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from experiments.assets import Assets, prepare
from experiments.manifest import Manifest, print_settled
from experiments.points import Bench, describe_rows, resolve_mode
from testbed.errors import ConfigError
from testbed.grid import Point, batches, points
from testbed.progress import steps
from testbed.records import RunFolder
from testbed.schema import LatencyConfig

Modes = Callable[[int, Assets], list[str]]
ExtraRows = Callable[[Bench, Point], list[dict[str, Any]]]

MODE_WORDS = {
    "execute": "execute: real arithmetic at this machine's speed",
    "hold": "hold: real arithmetic, each segment held for the device profile's time",
    "replay": "replay: the device profile's time for each segment, arithmetic replaced by recorded outputs",
}


def run(config: LatencyConfig, backend: str, folder: RunFolder) -> int:
    """Measure what is not finished yet and write rows after each point. Returns the number of points that failed."""

    def modes(devices: int, assets: Assets) -> list[str]:
        slowed = config.emulated_device().macs_per_s / config.time_scale
        return [resolve_mode(config.compute_mode, devices, assets.core_macs_per_s, slowed)]

    return run_points(config, backend, folder, modes)


def run_points(
    config: LatencyConfig, backend: str, folder: RunFolder, modes: Modes, extra_rows: ExtraRows | None = None
) -> int:
    """The grid's points, each in the clock modes that ``modes(devices, assets)`` gives.

    extra_rows(bench, point): more rows of a point, which are not measured on the cluster.
    """
    settled = _skip_impossible(config, folder) | folder.settled(config.retry_failed)
    todo = [(devices, [p for p in batch if p.key not in settled]) for devices, batch in batches(config)]
    todo = [(devices, batch) for devices, batch in todo if batch]
    count = sum(len(batch) for _, batch in todo)
    print_settled(folder, config, count)
    if not count:
        return 0
    manifest = Manifest(folder, config)
    assets = prepare(config, [point.load() for _, batch in todo for point in batch])
    failed = 0
    for devices, batch in todo:
        chosen = modes(devices, assets)
        print(
            f"cluster of {devices} devices on {backend}; compute mode {'; '.join(MODE_WORDS[mode] for mode in chosen)}"
        )
        with Bench(config, backend, devices, assets) as bench:
            print(f"up in {bench.facts['start_s']:.1f} s")
            manifest.open_cluster(bench.manifest())
            costs = {point: sum(_cost_s(bench, point, mode) for mode in chosen) for point in batch}
            with steps(f"{len(batch)} points", sum(costs.values())) as shown:
                for number, point in enumerate(batch, 1):
                    shown.begin(f"[{number}/{len(batch)}] {point.label}")
                    begin = time.monotonic()
                    rows = bench.measure(point, chosen)
                    if extra_rows is not None:
                        rows += extra_rows(bench, point)
                    folder.append(rows)
                    failed += any(row["status"] != "ok" for row in rows)
                    line = describe_rows(point, rows, time.monotonic() - begin)
                    shown.done(costs[point], f"[{number}/{len(batch)}] {line}")
            folder.degrade({point.key: reason for point, reason in bench.recalibrate(batch).items()})
            manifest.close_cluster(bench.manifest())
    return failed


def _skip_impossible(config: LatencyConfig, folder: RunFolder) -> set[tuple[Any, ...]]:
    """Write a row for each point that its method cannot run on so many devices; returns their keys."""
    shape, known, skipped = config.model.shape(config.tokens), folder.points(), {}
    for point in points(config):
        try:
            point.load().check(shape, point.devices)
        except ConfigError as fault:
            skipped[point.key] = point.columns | {"status": "skipped", "error": str(fault)}
    if rows := [row for key, row in skipped.items() if key not in known]:
        folder.append(rows)
        print(f"{len(rows)} points skipped, as their methods cannot be split so; e.g. {rows[0]['error']}")
    return set(skipped)


def _cost_s(bench: Bench, point: Point, mode: str) -> float:
    """About how long a point takes, for the progress bar: passes within the budget and half a second around them."""
    expected = bench.expected_s(point, mode)
    return 0.5 + max(expected, min(bench.config.point_budget_s, expected * (bench.config.repeats + 1)))
