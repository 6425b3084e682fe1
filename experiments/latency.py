"""Runner ``latency``: each method variant at each number of devices, bandwidth and number of tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from experiments.cost_model.analytic import analytic_row
from experiments.cost_model.point_costs import PointCosts, skip_impossible
from experiments.measurement.cluster_bench import ClusterBench, describe_rows, resolve_mode
from experiments.measurement.decoder_inputs import prepare_decoder_inputs
from experiments.measurement.manifest import STAYS, Manifest, print_completed
from experiments.measurement.time_scale import plan_passes
from experiments.measurement.vit_inputs import prepare_vit_inputs
from testbed.config.schema import AUTO, DecoderLatencyConfig, LatencyConfig
from testbed.grid import Point, batches, points
from testbed.progress import steps
from testbed.results.run_folder import RunFolder
from testbed.results.schema import ANALYTIC

Modes = Callable[[int, float], list[str]]
ExtraRows = Callable[[PointCosts], list[dict[str, Any]]]

POINT_OVERHEAD_S = 0.5  # to shape the links and to write the rows of a point, for the progress bar

MODE_DESCRIPTIONS = {
    "execute": "execute (real arithmetic at this machine's speed)",
    "hold": "hold (real arithmetic, then a wait until the emulated compute time is over)",
    "replay": "replay (a wait for the emulated compute time, with recorded outputs)",
}


def run(config: LatencyConfig, backend: str, folder: RunFolder) -> int:
    """Measure all points that are not completed and write rows after each. Returns the number of failed points."""
    if backend == ANALYTIC:
        return _run_analytic(config, folder)

    def modes(devices: int, core_macs_per_s: float) -> list[str]:
        slowed = config.emulated_device().macs_per_s / (1.0 if config.time_scale == AUTO else config.time_scale)
        return [resolve_mode(config.compute_mode, devices, core_macs_per_s, slowed)]

    return run_points(config, backend, folder, modes)


def run_points(
    config: LatencyConfig, backend: str, folder: RunFolder, modes: Modes, extra_rows: ExtraRows | None = None
) -> int:
    """Measure all points that are not completed. Returns the number of failed points.

    modes(devices, core_macs_per_s): the compute modes for each cluster, from the speed of one core of this machine.
    extra_rows(costs): further rows of a point that are not measured on the cluster.
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
        described = ", ".join(MODE_DESCRIPTIONS[mode] for mode in chosen)
        print(f"cluster of {devices} devices on {backend}; compute mode {described}")
        with ClusterBench(config, backend, devices, assets, batch, chosen) as bench:
            print(f"cluster started in {bench.facts['start_s']:.1f} s")
            manifest.open_cluster(bench.manifest())
            measured: list[Point] = []
            seconds = {
                point: POINT_OVERHEAD_S + sum(plan_passes(costs, mode).total_s for mode in chosen)
                for point, costs in bench.costs.items()
            }
            with steps(f"{len(batch)} points", sum(seconds.values())) as shown:
                for number, point in enumerate(batch, 1):
                    shown.begin(f"[{number}/{len(batch)}] {point.label}")
                    begin = time.monotonic()
                    rows = bench.measure(point)
                    if extra_rows is not None:
                        rows += extra_rows(bench.costs[point])
                    kept = folder.append(rows)
                    measured.append(point)
                    failed += any(row["status"] != "ok" for row in kept or rows)
                    line = describe_rows(point, kept or rows, time.monotonic() - begin) + ("" if kept else STAYS)
                    shown.done(seconds[point], f"[{number}/{len(batch)}] {line}")
            folder.degrade({point.key: reason for point, reason in bench.recalibrate(measured).items()})
            manifest.close_cluster(bench.manifest())
    return failed


def _run_analytic(config: LatencyConfig, folder: RunFolder) -> int:
    """Write rows of the cost model for all points that are not completed. Returns 0, as no formula fails."""
    completed = skip_impossible(config, folder) | folder.completed(config.retry_failed)
    todo = [PointCosts(point, config) for point in points(config) if point.key not in completed]
    print_completed(folder, config, len(todo))
    if todo:
        Manifest(folder, config)
        folder.append([analytic_row(costs) for costs in todo])
        minutes = sum(plan_passes(costs, "replay").total_s for costs in todo) / 60
        print(
            f"{len(todo)} points from the cost model. Measuring them in replay on this machine would take about "
            f"{minutes:.0f} min of forward passes; starting clusters and verification would come on top"
        )
    return 0
