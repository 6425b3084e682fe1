"""What is known of a point before it is measured, from its configuration and the methods' formulas alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from testbed.clock import Device
from testbed.errors import ConfigError
from testbed.grid import Point, points
from testbed.models.shape import ModelShape
from testbed.records import RunFolder
from testbed.schema import LatencyConfig


@cache  # auto tries a dozen combinations, and each row asks
def resolved(point: Point, shape: ModelShape, device: Device) -> Point:
    """The point with settings that leave nothing open."""
    chosen = point.load().resolve(shape, point.devices, device, point.bandwidth_mbps * 1e6)
    return replace(point, settings=tuple({**dict(point.settings), **chosen}.items()))


def predicted_s(point: Point, config: LatencyConfig, device: Device) -> float:
    """Seconds of one pass on emulated devices like this one, by the cost model."""
    shape = config.model.shape(point.tokens)
    method = resolved(point, shape, config.emulated_device()).load()
    return method.predicted_s(shape, point.devices, device, point.bandwidth_mbps * 1e6)


def known_columns(point: Point, config: LatencyConfig) -> dict[str, Any]:
    """The columns of a row that do not depend on who measures it, how and whether at all."""
    model, shape = config.model, config.model.shape(point.tokens)
    used = resolved(point, shape, config.emulated_device())
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
        "device_profile": config.device.name,
        "speedups_used": dict(used.settings).get("speedups", ""),
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
