"""How a point is measured: how many passes, and how much faster or slower than the emulated devices they run.

``time_scale=auto``: a pass at 10 Mbps that takes the emulated devices a minute and a half need not take this machine as
long. With links eight times faster and slots eight times shorter everything stays in proportion, as long as the machine
can shape such links, and as long as what it adds to each message by itself, which does not shrink, stays small beside
the rest. A pass of a tenth of a second may take longer: four times slower, what the machine adds is a quarter as much
beside it. And where links are faster than it can shape, the point runs slower than the devices would.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from experiments.cost_model.point_costs import known_columns, played, predicted_s
from testbed.comm.wire import EXCHANGE_S
from testbed.config.schema import AUTO, LatencyConfig
from testbed.device.spec import Device
from testbed.grid import Point

# Powers of two, so that few different rates have to be calibrated.
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
CORE_MBPS = 200.0  # of all links together, each way, that a core keeps up with (docs/decisions/0012-time-scale.md)
SLOWEST_SCALE = 4.0  # times slower than the devices: no more than that where nothing else asks for it
DISTORTION = 0.03  # of a latency: by how much running faster may overstate what this machine adds to messages
WARM_SHARE = 3  # a warm-up pass is made where the point's time budget holds this many passes


@dataclass(frozen=True)
class Pace:
    """time_scale, timed passes, passes before them that do not count, and seconds that each should take here."""

    time_scale: float
    repeats: int
    warmups: int
    pass_s: float

    @property
    def total_s(self) -> float:
        """Seconds of all passes."""
        return (self.repeats + self.warmups) * self.pass_s


def pace(point: Point, config: LatencyConfig, mode: str, computed_s: float = 0.0) -> Pace:
    """How a point is measured in a mode of the clock, from the cost model.

    computed_s: what arithmetic at this machine's speed adds to a pass; in execute it replaces the slots.
    """
    devices = (Device(),) * point.devices if mode == "execute" else played(point, config)
    latency_s, time_scale = predicted_s(point, config, devices), config.time_scale
    if time_scale == AUTO:
        known = known_columns(point, config)
        links_mbps = point.devices * point.bandwidth_mbps if known["formula_bytes"] else 0.0
        pass_budget_s = config.point_budget_s / (config.repeats + 1)
        # Held slots are no shorter than this machine's arithmetic, and arithmetic that is executed has no slots.
        fits = mode == "replay"
        time_scale = fitting_scale(latency_s, known["messages"], links_mbps, pass_budget_s) if fits else 1.0
    pass_s = time_scale * latency_s + computed_s
    affordable = int(config.point_budget_s / pass_s) if pass_s else config.repeats
    repeats = max(1, min(config.repeats, affordable))
    return Pace(time_scale, repeats, 1 if config.point_budget_s > WARM_SHARE * pass_s else 0, pass_s)


def fitting_scale(
    latency_s: float, messages: int, links_mbps: float, pass_budget_s: float, cores: int | None = None
) -> float:
    """The time_scale of a point: as slow as its budget lets it run, never faster than links and messages allow.

    latency_s: of a pass on the emulated devices; messages: received in it. links_mbps: the rate of all links that carry
    something, added up. pass_budget_s: what a pass may take on this machine. cores: of this machine.
    """
    shaped = links_mbps / (CORE_MBPS * (cores or os.cpu_count() or 1))
    undistorted = 1 / (1 + DISTORTION * latency_s / (messages * EXCHANGE_S)) if messages else 0.0
    slowest = min(SLOWEST_SCALE if messages else 1.0, pass_budget_s / latency_s)
    allowed = [scale for scale in SCALES if scale >= max(shaped, undistorted)] or [SCALES[-1]]
    return max((scale for scale in allowed if scale <= slowest), default=allowed[0])
