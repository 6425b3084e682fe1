"""Measure points of a grid on one emulated cluster, one after another; a fault costs its point and no other."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from experiments.cost_model.point_costs import formula_bytes, known_columns, played, predicted_s, real_wire, resolved
from experiments.measurement.calibration import Calibration, calibrate, calibrate_fresh, lowest_steal, steal_notes
from experiments.measurement.recovery import RecoveringSession
from experiments.measurement.time_scale import Pace, pace
from experiments.measurement.verify import Verification, verify
from experiments.measurement.vit_inputs import Assets
from testbed.astra.codebooks import load_codebooks
from testbed.cluster.priority import attainable_priority
from testbed.cluster.worker import ForwardTiming
from testbed.config.device_mix import emulated_devices
from testbed.config.schema import LatencyConfig
from testbed.errors import ClusterError, CommError
from testbed.grid import Point
from testbed.session import Session

HEADROOM = 1.5  # a core must be this much faster than the device it plays, or slots overrun now and then
LATE_SHARE = 0.02  # of a pass: slots that ended so much too late in total spoil it
RESIDUAL_LIMIT_PCT = 15.0  # of the cost model: so far off, something is not accounted for
NOT_MEASURED = dict.fromkeys(("paper_bytes", "paper_latency_ms"))  # the paper's accounting is in analytic rows only


def resolve_mode(requested: str, devices: int, core_macs_per_s: float, device_macs_per_s: float) -> str:
    """``auto`` holds slots with real computation where every device can have a core that is fast enough, else replays.

    device_macs_per_s: of the emulated device on this machine's clock, that is divided by time_scale.
    """
    if requested != "auto":
        return requested
    enough = (os.cpu_count() or 1) > devices and core_macs_per_s > HEADROOM * device_macs_per_s
    return "hold" if enough else "replay"


def variant(point: Point) -> str:
    """The name of a point's method variant among the actors: method, settings, shares and input, whatever the link."""
    return f"{point.method} {dict(point.settings)} {point.partition} shares {point.tokens} tokens"


class ClusterBench:
    """A cluster of ``devices`` actors with the run's model, for these points in these modes. A context manager.

    assets: by number of tokens. A cluster has the model for one number of tokens at a time; a method variant is
    verified after each loading, before its first point, at the fastest of the run's bandwidths.
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
        sending = [point for point in points if self._formula_bytes(point)] or points
        self._link_rates = sorted({link_mbps(point, pace(point, config, mode)) for point in sending for mode in modes})
        self._tokens = 0  # of the input that the actors have
        self._prepared: dict[str, float] = {}  # seconds of each variant's verifying pass since the last loading
        self._recovering = RecoveringSession(config, backend, devices, self._begin)

    def __enter__(self) -> ClusterBench:
        self._recovering.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._recovering.__exit__()

    @property
    def session(self) -> Session:
        """The one that stands now."""
        return self._recovering.session

    def _begin(self, session: Session) -> None:
        """Calibrate a fresh cluster."""
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
        """Rows of one point, its repeats in each mode of the clock. After a fault of the cluster they say failed."""
        try:
            self._load(point.tokens)
            self._prepare(resolved(point, self.config))
            rows = [row for mode in self.modes for row in self._measure(point, mode)]
        except (ClusterError, CommError) as error:
            failed = self._row(point, self.modes[0]) | {"status": "failed", "error": str(error)}
            self._recovering.recover(error)
            return [failed]
        return rows

    def _load(self, tokens: int) -> None:
        """Give the actors the model and the input of so many tokens; what they had prepared goes with the old ones."""
        if tokens == self._tokens:
            return
        self._prepared.clear()
        assets = self.assets[tokens]
        self.session.load(assets.choice, tokens, assets.weights, assets.inputs)
        self._tokens = tokens

    def _prepare(self, point: Point) -> None:
        """Build the variant's shards and verify it once after each loading; ``point`` is resolved."""
        method, key, assets = point.load(), variant(point), self.assets[point.tokens]
        if key in self._prepared:
            return
        codebooks = assets.codebooks.get(method.codebook_key)
        if codebooks is not None:  # what is computed of them is in the cache before all ranks want it at once
            method.attach(*load_codebooks(codebooks), codebooks.parent)
            method.shard(assets.model, 0, self.devices)
        self.session.prepare(key, point.method, point.speeds, dict(point.settings), codebooks)
        self.session.time_scale = 1.0
        self.session.shape(max(self.config.bandwidths))
        ranks = self.session.verify(key)
        self.verified[key] = verify(method, self.devices, ranks, assets)
        self._prepared[key] = max(done.compute_s + done.encode_s + done.decode_s for _, done in ranks)

    def _measure(self, point: Point, mode: str) -> list[dict[str, Any]]:
        used = resolved(point, self.config)
        check = self.verified[variant(used)]
        if not check.ok:
            return [self._row(point, mode) | {"status": "failed", "error": check.fault}]
        paced = self._pace(point, mode)
        self.session.time_scale = paced.time_scale
        self.session.shape(point.bandwidth_mbps)
        devices = emulated_devices(self.config, point.method, self.devices)
        measure = partial(
            self.session.measure, variant(used), mode, devices, paced.repeats, paced.warmups, paced.pass_s
        )
        steal_pct, (passes, carried) = lowest_steal(measure, self.config.point_budget_s)
        common = self._row(point, mode)
        wire = None if carried is None else round(carried)
        return [
            common | self._figures(point, mode, [ranks[repeat] for ranks in passes], repeat, wire, steal_pct)
            for repeat in range(paced.repeats)
        ]

    def _pace(self, point: Point, mode: str) -> Pace:
        executed_s = self._prepared.get(variant(resolved(point, self.config)), 0.0) if mode == "execute" else 0.0
        return pace(point, self.config, mode, executed_s)

    def _figures(
        self, point: Point, mode: str, ranks: list[ForwardTiming], repeat: int, wire_bytes: int | None, steal_pct: float
    ) -> dict[str, Any]:
        """Measured columns of one repeat: the whole group's time, split as the last rank to finish spent it."""
        last, paced = max(ranks, key=lambda done: done.end_s), self._pace(point, mode)
        to_ms = 1e3 / paced.time_scale
        payload, formula = max(done.received_bytes for done in ranks), self._formula_bytes(point)
        elapsed_s = last.end_s - min(done.begin_s for done in ranks)
        late_share = max(done.late_s for done in ranks) / elapsed_s
        residual = None if mode == "execute" else self._residual_pct(point, paced, elapsed_s)
        notes = self.calibrations[-1].breaches(link_mbps(point, paced) if formula else None, paced.time_scale)
        notes += steal_notes(steal_pct)
        if late_share > LATE_SHARE:
            notes.append(f"slots ended late, by {late_share:.1%} of the latency")
        if residual is not None and abs(residual) > RESIDUAL_LIMIT_PCT:
            notes.append(f"{residual:+.0f}% off the cost model")
        return {
            "repeat": repeat,
            "latency_ms": to_ms * elapsed_s,
            "compute_ms": to_ms * last.compute_s,
            "encode_ms": to_ms * last.encode_s,
            "decode_ms": to_ms * last.decode_s,
            "wire_ms": to_ms * last.wire_s,
            "wait_ms": to_ms * last.wait_s,
            "straggler_wait_pct": straggler_wait_pct(ranks[: point.devices]),
            "payload_bytes": payload,
            "wire_bytes": wire_bytes,
            "overruns": sum(done.overruns for done in ranks),
            "steal_pct": steal_pct,
            "fidelity": "degraded" if notes else "ok",
            "fidelity_note": "; ".join(notes),
            "residual_pct": residual,
            "status": "ok" if payload == formula else "failed",
            "error": "" if payload == formula else f"{payload} payload bytes, the formula says {formula}",
        }

    def _formula_bytes(self, point: Point) -> int:
        return round(formula_bytes(point, self.config))

    def _residual_pct(self, point: Point, paced: Pace, elapsed_s: float) -> float:
        """Measured over modeled: slots, bits with packet headers over the rate, calibrated overhead of exchanges."""
        # Beside slots that are so many times longer, what this machine adds to an exchange is so many times shorter.
        wire = real_wire(point, self.config, self.calibrations[-1].message_overhead_s / paced.time_scale)
        model_s = predicted_s(point, self.config, played(point, self.config), wire)
        return 100 * (elapsed_s / (paced.time_scale * model_s) - 1)

    def recalibrate(self, points: list[Point]) -> dict[Point, str]:
        """After the last point: is everything still as before? Returns what is wrong with which of the points."""
        self.calibrations.append(calibrate(self.session, self._link_rates))
        wrong = {}
        for point in points:
            found: dict[str, None] = {}
            for mode in self.modes:
                paced = self._pace(point, mode)
                rate = link_mbps(point, paced) if self._formula_bytes(point) else None
                found |= dict.fromkeys(self.calibrations[-1].breaches(rate, paced.time_scale))
            if found:
                wrong[point] = "after the last point: " + "; ".join(found)
        return wrong

    def _row(self, point: Point, mode: str) -> dict[str, Any]:
        """The columns that are known before anything is measured."""
        known = known_columns(point, self.config)
        check = self.verified.get(variant(resolved(point, self.config)))
        return (
            known
            | NOT_MEASURED
            | {
                "network": self.backend,
                "compute_mode": mode,
                "time_scale": self._pace(point, mode).time_scale,
                "burst_credit_bytes": self.session.burst_credit_bytes if known["formula_bytes"] else 0,
                "verified": None if check is None else check.ok,
                "max_abs_err": None if check is None else check.max_abs_err,
            }
        )

    def manifest(self) -> dict[str, Any]:
        """Facts of this cluster for the manifest."""
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
    """The column of that name: what the other ranks on average wait for the straggler, in percent of the latency.

    The straggler is the rank that computes longest, in segments of all kinds (compute, encode, decode), in this pass.
    While it computes longer than another rank does, that one has nothing to do but to wait for it, at once or at later
    exchanges: the difference of both, averaged over all ranks but the straggler, over the time from the common start to
    the last rank's end. What all wait for, the network, is not in it, nor what a pipeline's stages wait for each other
    beyond that difference. None for one rank.
    """
    if len(ranks) < 2:
        return None
    *others, straggler = sorted(done.compute_s + done.encode_s + done.decode_s for done in ranks)
    latency_s = max(done.end_s for done in ranks) - min(done.begin_s for done in ranks)
    return 100 * (straggler - statistics.mean(others)) / latency_s


def link_mbps(point: Point, paced: Pace) -> float:
    """The rate of each link on this machine's clock."""
    return point.bandwidth_mbps / paced.time_scale


def describe_rows(point: Point, rows: list[dict[str, Any]], seconds: float) -> str:
    """One line about a finished point."""
    if rows[0]["status"] != "ok":
        return f"{point.label}: FAILED: {rows[0]['error']}"
    latencies = sorted(row["latency_ms"] for row in rows)
    marks = "s" if len(rows) > 1 else ""
    marks += "" if all(row["fidelity"] == "ok" for row in rows) else ", degraded"
    return f"{point.label}: {latencies[len(latencies) // 2]:.1f} ms, {len(rows)} repeat{marks} ({seconds:.0f} s)"
