"""``ClusterBench`` measures points of a grid on one emulated cluster. A fault costs the point that it hits only."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from experiments.cost_model.point_costs import PointCosts
from experiments.measurement.calibration import Calibration, attempts, calibrate, calibrate_fresh, steal_notes
from experiments.measurement.fidelity_checks import FidelityCheck, fidelity_checks
from experiments.measurement.model_inputs import Assets
from experiments.measurement.recovery import RecoveringSession
from experiments.measurement.time_scale import PassPlan, plan_passes
from experiments.measurement.verify import Verification, verify
from testbed.astra.codebooks import load_codebooks
from testbed.cluster.worker import ForwardTiming
from testbed.config.device_mix import emulated_devices
from testbed.config.schema import LatencyConfig
from testbed.device.priority import attainable_priority
from testbed.errors import ClusterError, CommError
from testbed.grid import Point
from testbed.limits import usable_cores
from testbed.methods.base import CodebookMethod
from testbed.session import Session

HOLD_SPEED_RATIO = 1.5  # speed of a core over the emulated device's; with a lower ratio, hold has overruns
LATE_LIMIT = 0.02  # part of the latency by which emulated compute time may end late in total
RESIDUAL_LIMIT_PCT = 10.0  # a larger distance from the cost model has a cause that the model does not contain


def resolve_mode(requested: str, devices: int, core_macs_per_s: float, device_macs_per_s: float) -> str:
    """The compute mode. ``auto`` becomes ``hold`` if each device can have a core that is fast enough, else ``replay``.

    core_macs_per_s: speed of one core of this machine. device_macs_per_s: speed of the emulated device over the time
    scale.
    """
    if requested != "auto":
        return requested
    enough = usable_cores() > devices and core_macs_per_s > HOLD_SPEED_RATIO * device_macs_per_s
    return "hold" if enough else "replay"


def variant(point: Point) -> str:
    """The name under which actors keep a method variant: method, settings, partition and number of tokens."""
    return f"{point.method} {dict(point.settings)} {point.partition} partition {point.tokens} tokens"


class ClusterBench:
    """A cluster of ``devices`` actors that measures ``points`` in ``modes``. It is a context manager.

    assets: weights, inputs and references for each number of tokens. A cluster holds the model for one number of tokens
    at a time. A method variant is verified once after each load, before its first point, at the run's highest
    bandwidth. costs: what formulas say of each point.
    """

    def __init__(
        self,
        config: LatencyConfig,
        backend: str,
        devices: int,
        assets: Mapping[int, Assets],
        points: list[Point],
        modes: list[str],
    ):
        self.config, self.backend, self.devices, self.assets = config, backend, devices, assets
        self.modes = modes
        self.verified: dict[str, Verification] = {}
        self.facts: dict[str, Any] = {}
        self.calibrations: list[Calibration] = []
        self.costs = {point: PointCosts(point, config) for point in points}
        sending = [costs for costs in self.costs.values() if sends(costs)] or [*self.costs.values()]
        self._link_rates = sorted({link_mbps(costs, plan_passes(costs, mode)) for costs in sending for mode in modes})
        self._tokens = 0  # number of tokens that the actors have loaded
        self._shown: dict[Point, frozenset[str]] = {}  # columns in which all passes of a point say what happened
        self._prepared: dict[str, float] = {}  # variant -> seconds of its verifying pass, since the last load
        self._recovering = RecoveringSession(config, backend, devices, self._begin)

    def __enter__(self) -> ClusterBench:
        self._recovering.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._recovering.__exit__()

    @property
    def session(self) -> Session:
        """The current session."""
        return self._recovering.session

    def _begin(self, session: Session) -> None:
        """Calibrate a new cluster and note its facts."""
        session.shape(max(self.config.bandwidths))
        self.calibrations.append(calibrate_fresh(session, self._link_rates))
        self._tokens = 0
        self.facts = {
            "start_s": round(session.start_s, 2),
            "reshape_s": round(session.reshape_s, 4),
            "idle_bytes": self.calibrations[-1].idle_bytes,
            "congestion_control": session.congestion_control(),
            "network": session.network.describe(),
        }

    def measure(self, point: Point) -> list[dict[str, Any]]:
        """Rows of one point: its repeats in each compute mode and attempt. After a fault there is one failed row."""
        try:
            self._load(point.tokens)
            costs = self.costs[point]
            self._prepare(costs)
            rows = [row for mode in self.modes for row in self._measure(costs, mode)]
        except (ClusterError, CommError) as error:
            failed = self._row(self.costs[point], self.modes[0]) | {"status": "failed", "error": str(error)}
            self._recovering.recover(error)
            return [failed]
        return rows

    def _load(self, tokens: int) -> None:
        """Load the model and the input for this number of tokens. The actors drop what they had prepared before."""
        if tokens == self._tokens:
            return
        self._prepared.clear()
        assets = self.assets[tokens]
        self.session.load(assets.choice, tokens, assets.weights, assets.inputs)
        self._tokens = tokens

    def _prepare(self, costs: PointCosts) -> None:
        """Build the shards of a variant and verify it, once after each load."""
        point, method = costs.resolved, costs.method
        key, assets = variant(point), self.assets[point.tokens]
        if key in self._prepared:
            return
        codebooks = None
        if isinstance(method, CodebookMethod):
            codebooks = assets.codebooks[method.codebook_spec]
            method.attach(*load_codebooks(codebooks), codebooks.parent)
            method.shard(assets.model, 0, self.devices)  # its lookup tables are cached before all ranks need them
        self.session.prepare(key, point.method, point.speeds, dict(point.settings), codebooks)
        self.session.time_scale = 1.0
        self.session.shape(max(self.config.bandwidths))
        ranks = self.session.verify(key)
        self.verified[key] = verify(method, self.devices, ranks, assets)
        self._prepared[key] = max(done.compute_s + done.encode_s + done.decode_s for _, done in ranks)

    def _measure(self, costs: PointCosts, mode: str) -> list[dict[str, Any]]:
        key = variant(costs.resolved)
        check = self.verified[key]
        if not check.ok:
            return [self._row(costs, mode) | {"status": "failed", "error": check.fault}]
        plan = self._plan(costs, mode)
        self.session.time_scale = plan.time_scale
        self.session.shape(costs.point.bandwidth_mbps)
        # The baseline runs on rank 0 only; its device is given to every rank.
        devices = emulated_devices(self.config, costs.point.method, self.devices)
        passes_of_point = (plan.repeats, plan.warmups, plan.pass_s, plan.computing_s)
        measure = partial(self.session.measure, key, mode, devices, *passes_of_point)
        rows = []
        for attempt, (steal_pct, passes) in enumerate(attempts(measure, self.config.point_budget_s)):
            checks = fidelity_checks(passes, self.session.network, sends(costs))
            for repeat, (each, check) in enumerate(zip(passes, checks, strict=True)):
                measured = self._measured(costs, plan, mode, each.ranks, repeat, check, steal_pct)
                rows.append(self._row(costs, mode) | measured | {"attempt": attempt})
                self._shown[costs.point] = self._shown.get(costs.point, check.shown) & check.shown
        return rows

    def _plan(self, costs: PointCosts, mode: str) -> PassPlan:
        executed_s = self._prepared.get(variant(costs.resolved), 0.0) if mode == "execute" else 0.0
        return plan_passes(costs, mode, executed_s)

    def _measured(
        self,
        costs: PointCosts,
        plan: PassPlan,
        mode: str,
        ranks: list[ForwardTiming],
        repeat: int,
        check: FidelityCheck,
        steal_pct: float,
    ) -> dict[str, Any]:
        """Measured columns of one repeat: the latency of all ranks, and the parts of the rank that finished last."""
        last = max(ranks, key=lambda done: done.end_s)
        to_ms = 1e3 / plan.time_scale
        payload, formula = max(done.received_bytes for done in ranks), round(costs.formula_bytes)
        elapsed_s = last.end_s - min(done.begin_s for done in ranks)
        late = max(done.late_s for done in ranks) / elapsed_s
        exchange_late = max(done.exchange_late_s for done in ranks) / elapsed_s
        residual = None if mode == "execute" else self._residual_pct(costs, plan, elapsed_s)
        rate = link_mbps(costs, plan) if formula else None
        notes = self.calibrations[-1].breaches(rate, plan.time_scale, check.shown)
        notes += [*steal_notes(steal_pct), *check.notes]
        if late > LATE_LIMIT:
            notes.append(f"emulated compute time ended late by {late:.1%} of the latency")
        if exchange_late > LATE_LIMIT and mode != "execute":
            notes.append(f"brief messages came later than links and hosts need, by {exchange_late:.1%} of the latency")
        if residual is not None and abs(residual) > RESIDUAL_LIMIT_PCT:
            notes.append(f"latency off the cost model by {residual:+.0f}%")
        return {
            "repeat": repeat,
            "warm_up": plan.warmups,
            "latency_ms": to_ms * elapsed_s,
            "compute_ms": to_ms * last.compute_s,
            "encode_ms": to_ms * last.encode_s,
            "decode_ms": to_ms * last.decode_s,
            "wire_ms": to_ms * last.wire_s,
            "wait_ms": to_ms * last.wait_s,
            "made_up_ms": to_ms * max(done.made_up_s for done in ranks),
            "exchange_late_ms": to_ms * max(done.exchange_late_s for done in ranks),
            "straggler_wait_pct": straggler_wait_pct(ranks[: costs.point.devices]),
            "payload_bytes": payload,
            **check.columns,
            "overruns": sum(done.overruns for done in ranks),
            "steal_pct": steal_pct,
            "fidelity": "degraded" if notes else "ok",
            "fidelity_note": "; ".join(notes),
            "residual_pct": residual,
            "status": "ok" if payload == formula else "failed",
            "error": ""
            if payload == formula
            else f"{payload} payload bytes were received; the formula gives {formula}",
        }

    def _residual_pct(self, costs: PointCosts, plan: PassPlan, elapsed_s: float) -> float:
        """How far the measured latency is above the cost model's, in percent. Nothing measured enters the model."""
        return 100 * (elapsed_s / (plan.time_scale * costs.predicted_s(wire=costs.packet_wire())) - 1)

    def recalibrate(self, points: list[Point]) -> dict[Point, str]:
        """Calibrate again after the last point. Returns point -> note for each point whose links or cores changed."""
        self.calibrations.append(calibrate(self.session, self._link_rates))
        notes = {}
        for point in points:
            found: dict[str, None] = {}
            for mode in self.modes:
                costs = self.costs[point]
                plan = self._plan(costs, mode)
                rate = link_mbps(costs, plan) if sends(costs) else None
                breaches = self.calibrations[-1].breaches(rate, plan.time_scale, self._shown.get(point, frozenset()))
                found |= dict.fromkeys(breaches)
            if found:
                notes[point] = "after the last point: " + "; ".join(found)
        return notes

    def _row(self, costs: PointCosts, mode: str) -> dict[str, Any]:
        """Columns that are known before a pass is measured."""
        check = self.verified.get(variant(costs.resolved))
        return costs.columns | {
            "network": self.backend,
            "compute_mode": mode,
            "time_scale": self._plan(costs, mode).time_scale,
            "burst_credit_bytes": self.session.burst_credit_bytes if sends(costs) else 0,
            "verified": None if check is None else check.ok,
            "max_abs_err": None if check is None else check.max_abs_err,
            "allowed_abs_err": None if check is None else check.allowed_abs_err,
        }

    def manifest(self) -> dict[str, Any]:
        """What the manifest records about this cluster."""
        checks = {key: vars(check) for key, check in self.verified.items()}
        return {
            "devices": self.devices,
            "actor_threads": self.session.cluster.threads,
            "replay_priority": attainable_priority(),
            **self.facts,
            "verification": checks,
            "calibration": [vars(calibration) for calibration in self.calibrations],
        }


def straggler_wait_pct(ranks: Sequence[ForwardTiming]) -> float | None:
    """Column ``straggler_wait_pct``: how long the other ranks wait for the straggler, in percent of the latency.

    The straggler is the rank with the longest computation in this pass (segments of kinds compute, encode and decode).
    Each other rank must wait for it by the difference of both computations. The result is the mean of these differences
    over the latency. Time that all ranks wait for the network is not included, nor is the time that pipeline stages
    wait for each other beyond this difference. None for one rank.
    """
    if len(ranks) < 2:
        return None
    *others, straggler = sorted(done.compute_s + done.encode_s + done.decode_s for done in ranks)
    latency_s = max(done.end_s for done in ranks) - min(done.begin_s for done in ranks)
    return 100 * (straggler - statistics.mean(others)) / latency_s


def link_mbps(costs: PointCosts, plan: PassPlan) -> float:
    """The rate in Mbps to which the links are shaped on this machine."""
    return costs.point.bandwidth_mbps / plan.time_scale


def sends(costs: PointCosts) -> bool:
    """Whether devices send anything in a forward pass."""
    return round(costs.formula_bytes) > 0


def describe_rows(point: Point, rows: list[dict[str, Any]], seconds: float) -> str:
    """One line about a measured point."""
    if rows[0]["status"] != "ok":
        return f"{point.label}: FAILED: {rows[0]['error']}"
    latencies = sorted(row["latency_ms"] for row in rows)
    marks = "s" if len(rows) > 1 else ""
    marks += "" if all(row["fidelity"] == "ok" for row in rows) else ", degraded"
    return f"{point.label}: {latencies[len(latencies) // 2]:.1f} ms, {len(rows)} repeat{marks} ({seconds:.0f} s)"
