"""What is known of a point before it is measured, from its configuration and the methods' formulas alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from testbed.comm.wire import EXCHANGE_S, Wire
from testbed.config.device_mix import emulated_devices
from testbed.config.schema import LatencyConfig
from testbed.device.spec import Device
from testbed.errors import ConfigError
from testbed.grid import Point, points
from testbed.models.shape import ModelShape
from testbed.results.run_folder import RunFolder
from topologies.link_graph import LinkGraph


def played(point: Point, config: LatencyConfig) -> tuple[Device, ...]:
    """What each rank of a point's method plays."""
    return tuple(emulated_devices(config, point.method, point.devices))


def resolved(point: Point, config: LatencyConfig) -> Point:
    """The point with settings that leave nothing open."""
    return _resolved(point, config.model.shape(point.tokens), played(point, config), real_wire(point, config))


@cache  # auto tries a dozen combinations, and each row asks
def _resolved(point: Point, shape: ModelShape, devices: tuple[Device, ...], wire: Wire) -> Point:
    chosen = point.load().resolve(shape, devices, wire)
    return replace(point, settings=tuple({**dict(point.settings), **chosen}.items()))


def bits_per_s(point: Point, config: LatencyConfig) -> float:
    """What the cost model divides received bits by: on a star the links' rate, elsewhere what these links come to."""
    rate_bps = point.bandwidth_mbps * 1e6
    if point.devices < 2:
        return rate_bps
    graph = config.topology.graph(point.devices)
    return rate_bps * _relative_rate(graph, point.load().traffic, graph.all_gather(config.all_gather))


@cache
def _relative_rate(graph: LinkGraph, kinds: tuple[str, ...], algorithm: str) -> float:
    return graph.relative_rate(kinds, algorithm)


def real_wire(point: Point, config: LatencyConfig, exchange_s: float = EXCHANGE_S) -> Wire:
    """The links of a point as messages find them; exchange_s as of ``Wire``."""
    return Wire(bits_per_s(point, config), packets=True, exchange_s=exchange_s)


def predicted_s(point: Point, config: LatencyConfig, devices: Sequence[Device], wire: Wire | None = None) -> float:
    """Seconds of one pass on these devices, by rank, from the cost model.

    wire: what links are taken for; if not said, bits over their rate, as papers have it.
    """
    wire = wire or Wire(bits_per_s(point, config))
    return resolved(point, config).load().predicted_s(config.model.shape(point.tokens), devices, wire)


def formula_bytes(point: Point, config: LatencyConfig) -> float:
    """What the rank that receives most receives in one pass."""
    received_bits = resolved(point, config).load().received_bits(config.model.shape(point.tokens), point.devices)
    return max(received_bits) / 8


def known_columns(point: Point, config: LatencyConfig) -> dict[str, Any]:
    """The columns of a row that do not depend on who measures it, how and whether at all."""
    shape, used = config.model.shape(point.tokens), resolved(point, config)
    method, received_bytes = used.load(), formula_bytes(point, config)
    graph = config.topology.graph(point.devices)
    return point.columns | {
        "delay_ms": 0.0,
        "loss_pct": 0.0,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "heads": shape.heads,
        "model": config.model.label,
        "topology": config.topology.name,
        "all_gather": graph.all_gather(config.all_gather) if config.transport == "tcp" else config.transport,
        "queue_kb": config.queue_kb,
        "device_profile": config.device_mix or config.device.name,
        "optimizations_resolved": dict(used.settings).get("optimizations", ""),
        "full_precision_pct": method.full_precision_pct(shape, point.devices),
        "repeat": 0,
        "formula_bytes": round(received_bytes),
        "messages": method.messages(shape, point.devices),
        "wire_floor_ms": 8e3 * received_bytes / bits_per_s(point, config),
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
