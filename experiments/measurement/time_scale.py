"""The plan of a point's measurement: the number of forward passes, and the time scale at which they run.

``time_scale=auto`` chooses a time scale for each point (docs/decisions/0012-time-scale.md):

- A long pass runs faster than on the emulated devices. Links are up to 8 times faster and emulated compute times are as
  many times shorter. This machine must be able to shape the faster links. What it needs itself for a message does not
  shrink. It is hidden as far as the emulated devices need time for a message too; the rest must stay a small part of
  the latency.
- A short pass runs up to 4 times slower. What the emulated devices need for a message then hides four times as much.
- If this machine cannot shape the links at their rate, the point also runs slower than on the emulated devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.cost_model.point_costs import PointCosts
from testbed.config.schema import AUTO
from testbed.device.spec import Device
from testbed.limits import usable_cores

# Powers of two, so that only few rates must be calibrated.
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
CORE_MBPS = 200.0  # rate of all links together, in each direction, that one core can shape
# More cores shape no more than these: one core takes in the packets of all links, so that they keep their order
# (docs/decisions/0006). On 2 cores it does half of all work.
MOST_CORES = 4
SLOWEST_SCALE = 4.0  # largest scale, unless the links need a larger one
HOST_EXCHANGE_S = 1.2e-3  # what this machine needs for an exchange of four devices on 2 cores: 1.1 to 1.4 ms
DISTORTION = 0.02  # part of the latency by which messages may be late because this machine needs longer for them
REPEATS, WARM_UPS = 2, 1  # that each point has even beyond its time budget,
LONGEST_BUDGETS = 5.0  # if all of them fit in this many time budgets; longer points have one repeat


@dataclass(frozen=True)
class PassPlan:
    """Time scale, number of timed passes, number of warm-up passes, and expected seconds of a pass on this machine.

    computing_s: of these, how long a device may wait for the computations of the others at most.
    """

    time_scale: float
    repeats: int
    warmups: int
    pass_s: float
    computing_s: float

    @property
    def total_s(self) -> float:
        """Expected seconds of all passes on this machine."""
        return (self.repeats + self.warmups) * self.pass_s


def plan_passes(costs: PointCosts, mode: str, executed_s: float = 0.0) -> PassPlan:
    """The plan for a point in a compute mode, by the cost model.

    executed_s: seconds of arithmetic in a pass at this machine's speed. In ``execute`` they replace emulated compute
    time.
    """
    point, config = costs.point, costs.config
    devices = (Device(),) * point.devices if mode == "execute" else costs.devices
    latency_s, time_scale = costs.predicted_s(devices), config.time_scale
    if time_scale == AUTO:
        links_mbps = point.devices * point.bandwidth_mbps if round(costs.formula_bytes) else 0.0
        pass_budget_s = config.point_budget_s / (config.repeats + 1)
        # In hold, a segment is at least as long as this machine's arithmetic. In execute, nothing is emulated.
        scalable = mode == "replay"
        wire = costs.packet_wire()
        rounds = costs.method.rounds(costs.shape, point.devices, wire)
        time_scale = fitting_scale(latency_s, rounds, wire.exchange_s, links_mbps, pass_budget_s) if scalable else 1.0
    pass_s = time_scale * latency_s + executed_s
    works = [costs.method.work(costs.shape, rank, len(devices)) for rank in range(len(devices))]
    emulated_s = sum(device.seconds(work) for device, work in zip(devices, works, strict=True))
    computing_s = time_scale * emulated_s + len(devices) * executed_s
    affordable = int(config.point_budget_s / pass_s) if pass_s else config.repeats
    if (REPEATS + WARM_UPS) * pass_s > LONGEST_BUDGETS * config.point_budget_s:
        return PassPlan(time_scale, 1, 0, pass_s, computing_s)
    repeats = min(config.repeats, max(REPEATS, affordable - WARM_UPS))
    return PassPlan(time_scale, repeats, WARM_UPS, pass_s, computing_s)


def fitting_scale(
    latency_s: float,
    rounds: int,
    exchange_s: float,
    links_mbps: float,
    pass_budget_s: float,
    cores: int | None = None,
) -> float:
    """The time scale of a point: the largest one that the time budget allows, but large enough for links and messages.

    latency_s: seconds of a pass on the emulated devices. rounds: messages of it that wait for each other. exchange_s:
    what the emulated devices need for each of them. links_mbps: the rates of all links that carry bytes, added up.
    pass_budget_s: seconds that a pass may take on this machine. cores: of this machine; default: all.
    """
    shaped = links_mbps / (CORE_MBPS * min(cores or usable_cores(), MOST_CORES))
    undistorted = rounds * HOST_EXCHANGE_S / (rounds * exchange_s + DISTORTION * latency_s) if rounds else 0.0
    slowest = min(SLOWEST_SCALE if rounds else 1.0, pass_budget_s / latency_s)
    allowed = [scale for scale in SCALES if scale >= max(shaped, undistorted)] or [SCALES[-1]]
    return max((scale for scale in allowed if scale <= slowest), default=allowed[0])
