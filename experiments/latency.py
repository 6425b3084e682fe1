"""Latency of each method variant at each device count, bandwidth and number of tokens: the sweeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from experiments.cost_model import analytic
from experiments.cost_model.point_costs import skip_impossible
from experiments.measurement.cluster_bench import ClusterBench, describe_rows, resolve_mode
from experiments.measurement.decoder_inputs import prepare_decoder_inputs
from experiments.measurement.manifest import HIGHER_STEAL, Manifest, print_completed
from experiments.measurement.time_scale import pace
from experiments.measurement.vit_inputs import prepare_vit_inputs
from testbed.config.schema import AUTO, DecoderLatencyConfig, LatencyConfig
from testbed.grid import Point, batches
from testbed.progress import steps
from testbed.results.run_folder import RunFolder
from testbed.results.schema import ANALYTIC

Modes = Callable[[int, float], list[str]]
ExtraRows = Callable[[Point], list[dict[str, Any]]]

AROUND_S = 0.5  # shaping the links and writing the rows of a point

MODE_WORDS = {
    "execute": "execute: real arithmetic at this machine's speed",
    "hold": "hold: real arithmetic, each segment held for the device profile's time",
    "replay": "replay: the device profile's time for each segment, arithmetic replaced by recorded outputs",
}


def run(config: LatencyConfig, backend: str, folder: RunFolder) -> int:
    """Measure what is not finished yet and write rows after each point. Returns the number of points that failed."""
    if backend == ANALYTIC:
        return analytic.run(config, folder)

    def modes(devices: int, core_macs_per_s: float) -> list[str]:
        slowed = config.emulated_device().macs_per_s / (1.0 if config.time_scale == AUTO else config.time_scale)
        return [resolve_mode(config.compute_mode, devices, core_macs_per_s, slowed)]

    return run_points(config, backend, folder, modes)


def run_points(
    config: LatencyConfig, backend: str, folder: RunFolder, modes: Modes, extra_rows: ExtraRows | None = None
) -> int:
    """The grid's points, each in the clock modes that ``modes(devices, core_macs_per_s)`` gives.

    extra_rows(point): more rows of a point, which are not measured on the cluster.
    """
    completed = skip_impossible(config, folder) | folder.completed(config.retry_failed, config.retry_degraded)
    todo = [(devices, [p for p in batch if p.key not in completed]) for devices, batch in batches(config)]
    todo = [(devices, batch) for devices, batch in todo if batch]
    count = sum(len(batch) for _, batch in todo)
    print_completed(folder, config, count)
    if not count:
        return 0
    manifest = Manifest(folder, config)
    remaining = [point for _, batch in todo for point in batch]
    if isinstance(config, DecoderLatencyConfig):
        assets = prepare_decoder_inputs(config, remaining)
    else:
        assets = prepare_vit_inputs(config, remaining)
    failed = 0
    for devices, batch in todo:
        chosen = modes(devices, min(each.core_macs_per_s for each in assets.values()))
        print(
            f"cluster of {devices} devices on {backend}; compute mode {'; '.join(MODE_WORDS[mode] for mode in chosen)}"
        )
        with ClusterBench(config, backend, devices, assets, batch, chosen) as bench:
            print(f"up in {bench.facts['start_s']:.1f} s")
            manifest.open_cluster(bench.manifest())
            measured: list[Point] = []
            costs = {point: AROUND_S + sum(pace(point, config, mode).total_s for mode in chosen) for point in batch}
            with steps(f"{len(batch)} points", sum(costs.values())) as shown:
                for number, point in enumerate(batch, 1):
                    shown.begin(f"[{number}/{len(batch)}] {point.label}")
                    begin = time.monotonic()
                    rows = bench.measure(point)
                    if extra_rows is not None:
                        rows += extra_rows(point)
                    failed += any(row["status"] != "ok" for row in rows)
                    line = describe_rows(point, rows, time.monotonic() - begin)
                    if folder.append_lower_steal(rows):
                        measured.append(point)
                    else:
                        line += HIGHER_STEAL
                    shown.done(costs[point], f"[{number}/{len(batch)}] {line}")
            folder.degrade({point.key: reason for point, reason in bench.recalibrate(measured).items()})
            manifest.close_cluster(bench.manifest())
    return failed
