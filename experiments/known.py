"""What is known of a point before it is measured, from its configuration and the methods' formulas alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from testbed.clock import Device
from testbed.errors import ConfigError
from testbed.grid import Point, points
from testbed.mix import emulated_devices
from testbed.models.shape import ModelShape
from testbed.records import RunFolder
from testbed.schema import LatencyConfig


def played(point: Point, config: LatencyConfig) -> tuple[Device, ...]:
    """What each rank of a point's method plays."""
    return tuple(emulated_devices(config, point.method, point.devices))


@cache  # auto tries a dozen combinations, and each row asks
def resolved(point: Point, shape: ModelShape, devices: tuple[Device, ...]) -> Point:
    """The point with settings that leave nothing open; devices: by rank."""
    chosen = point.load().resolve(shape, devices, point.bandwidth_mbps * 1e6)
    return replace(point, settings=tuple({**dict(point.settings), **chosen}.items()))


def predicted_s(
    point: Point, config: LatencyConfig, devices: Sequence[Device], bits_per_s: float | None = None
) -> float:
    """Seconds of one pass on these devices, by rank, from the cost model; bits_per_s: of links, if not the point's."""
    shape = config.model.shape(point.tokens)
    method = resolved(point, shape, played(point, config)).load()
    return method.predicted_s(shape, devices, point.bandwidth_mbps * 1e6 if bits_per_s is None else bits_per_s)


def known_columns(point: Point, config: LatencyConfig) -> dict[str, Any]:
    """The columns of a row that do not depend on who measures it, how and whether at all."""
    model, shape = config.model, config.model.shape(point.tokens)
    used = resolved(point, shape, played(point, config))
    method = used.load()
    formula_bytes = max(method.received_bits(shape, point.devices)) / 8
    return point.columns | {
        "delay_ms": 0.0,
        "loss_pct": 0.0,
        "layers": model.layers,
        "hidden": model.hidden,
        "heads": model.heads,
        "model": model.name,
        "topology": config.topology.name,
        "device_profile": config.mix or config.device.name,
        "speedups_used": dict(used.settings).get("speedups", ""),
        "full_precision_pct": method.full_precision_pct(shape, point.devices),
        "repeat": 0,
        "formula_bytes": round(formula_bytes),
        "messages": method.messages(shape, point.devices),
        "wire_floor_ms": 8e3 * formula_bytes / (point.bandwidth_mbps * 1e6),
    }


def skip_impossible(config: LatencyConfig, folder: RunFolder) -> set[tuple[Any, ...]]:
    """Write a row for each point that its method cannot run on so many devices; returns their keys."""
    known, skipped = folder.points(), {}
    for point in points(config):
        try:
            point.load().check(config.model.shape(point.tokens), point.devices)
        except ConfigError as fault:
            skipped[point.key] = point.columns | {"status": "skipped", "error": str(fault)}
    if rows := [row for key, row in skipped.items() if key not in known]:
        folder.append(rows)
        print(f"{len(rows)} points skipped, as their methods cannot be split so; e.g. {rows[0]['error']}")
    return set(skipped)
