"""``PointCosts``: everything that configuration and formulas say about a point before it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

from testbed.comm.wire import Wire
from testbed.config.device_mix import emulated_devices
from testbed.config.schema import LatencyConfig
from testbed.device.spec import Device
from testbed.errors import ConfigError
from testbed.grid import Point, points
from testbed.methods.base import Method
from testbed.models.shape import ModelShape
from testbed.results.run_folder import RunFolder
from topologies.link_graph import LinkGraph


class PointCosts:
    """The costs of one point of a grid. Each attribute is computed at its first use and kept."""

    def __init__(self, point: Point, config: LatencyConfig):
        self.point, self.config = point, config

    @cached_property
    def shape(self) -> ModelShape:
        """The sizes of the model and of one input."""
        return self.config.model.shape(self.point.tokens)

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """The emulated device of each rank."""
        return tuple(emulated_devices(self.config, self.point.method, self.point.devices))

    @cached_property
    def graph(self) -> LinkGraph:
        """The data links. Raises ConfigError if the topology does not fit this number of devices."""
        return self.config.topology.graph(self.point.devices)

    @cached_property
    def resolved(self) -> Point:
        """The point with every ``auto`` replaced by what it stands for on these devices and links."""
        chosen = self.point.load().resolve(self.shape, self.devices, self.packet_wire())
        return replace(self.point, settings=tuple({**dict(self.point.settings), **chosen}.items()))

    @cached_property
    def method(self) -> Method:
        """The method with the resolved settings."""
        return self.resolved.load()

    @cached_property
    def link_bps(self) -> float:
        """The rate in bits/s by which the cost model divides received bits.

        On a star it is the rate of the links. On other topologies it is the rate at which a star would take as long.
        """
        rate_bps = self.point.bandwidth_mbps * 1e6
        if self.point.devices < 2:
            return rate_bps
        algorithm = self.graph.all_gather(self.config.all_gather)
        return rate_bps * _relative_rate(self.graph, self.point.load().traffic, algorithm)

    @cached_property
    def formula_bytes(self) -> float:
        """Bytes that the rank with the most bytes receives in one forward pass."""
        return max(self.method.received_bits(self.shape, self.point.devices)) / 8

    def packet_wire(self) -> Wire:
        """The links with packet headers, and what the devices' hosts add to a message: the slowest host's value."""
        exchange_s = max(device.exchange_s for device in self.devices)
        staging_bytes_per_s = min(device.staging_bytes_per_s for device in self.devices)
        return Wire(self.link_bps, True, exchange_s, staging_bytes_per_s)

    def predicted_s(self, devices: Sequence[Device] | None = None, wire: Wire | None = None) -> float:
        """Seconds of one forward pass by the cost model.

        devices: by rank; default: the emulated ones. wire: the links; default: bits over the rate, without headers and
        overhead.
        """
        wire = wire or Wire(self.link_bps)
        return self.method.predicted_s(self.shape, self.devices if devices is None else devices, wire)

    @cached_property
    def columns(self) -> dict[str, Any]:
        """Columns that are the same in measured rows and in rows of the cost model."""
        point, config, shape = self.point, self.config, self.shape
        return point.columns | {
            "delay_ms": 0.0,
            "loss_pct": 0.0,
            "layers": shape.layers,
            "hidden": shape.hidden,
            "heads": shape.heads,
            "model": config.model.label,
            "topology": config.topology.name,
            "all_gather": self.graph.all_gather(config.all_gather),
            "queue_kb": config.queue_kb,
            "device_profile": config.device_mix or config.device.name,
            "optimizations_resolved": dict(self.resolved.settings).get("optimizations", ""),
            "full_precision_pct": self.method.full_precision_pct(shape, point.devices),
            "repeat": 0,
            "formula_bytes": round(self.formula_bytes),
            "messages": self.method.messages(shape, point.devices),
            "wire_floor_ms": 8e3 * self.formula_bytes / self.link_bps,
        }


@cache
def _relative_rate(graph: LinkGraph, kinds: tuple[str, ...], algorithm: str) -> float:
    return graph.relative_rate(kinds, algorithm)


def skip_impossible(config: LatencyConfig, folder: RunFolder) -> set[tuple[Any, ...]]:
    """Write a row with status skipped for each point that its method cannot run. Returns the keys of these points."""
    known, skipped = folder.points(), {}
    for point in points(config):
        try:
            point.load().check(config.model.shape(point.tokens), point.devices)
        except ConfigError as fault:
            skipped[point.key] = point.columns | {"status": "skipped", "error": str(fault)}
    if rows := [row for key, row in skipped.items() if key not in known]:
        folder.append(rows)
        print(f"{len(rows)} points skipped, because their methods cannot divide the model; first: {rows[0]['error']}")
    return set(skipped)
