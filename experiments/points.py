"""Measure points of a grid on one emulated cluster, one after another; a fault costs its point and no other."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import Any

from experiments.assets import Assets
from experiments.calibration import Calibration, calibrate
from experiments.lasting import LastingSession
from experiments.verify import Verification, verify
from testbed.astra.codebooks import load_codebooks
from testbed.clock import Device
from testbed.cluster.priority import attainable_priority
from testbed.cluster.worker import Pass
from testbed.errors import ClusterError, CommError
from testbed.grid import Point
from testbed.models.shape import ModelShape
from testbed.schema import LatencyConfig
from testbed.session import Session

HEADROOM = 1.5  # a core must be this much faster than the device it plays, or slots overrun now and then
LATE_SHARE = 0.02  # of a pass: slots that ended so much too late in total spoil it
RESIDUAL_LIMIT_PCT = 15.0  # of the cost model: so far off, something is not accounted for
WARM_SHARE = 3  # a warm-up pass is made where the point's time budget holds this many passes


def resolve_mode(requested: str, devices: int, core_macs_per_s: float, device_macs_per_s: float) -> str:
    """``auto`` holds slots with real computation where every device can have a core that is fast enough, else replays.

    device_macs_per_s: of the emulated device on this machine's clock, that is divided by time_scale.
    """
    if requested != "auto":
        return requested
    enough = (os.cpu_count() or 1) > devices and core_macs_per_s > HEADROOM * device_macs_per_s
    return "hold" if enough else "replay"


def variant(point: Point) -> str:
    """The name of a point's method variant among the actors: method and settings, whatever the link."""
    return f"{point.method} {dict(point.settings)}"


@cache  # auto tries a dozen combinations, and each row asks
def resolved(point: Point, shape: ModelShape, devices: int, device: Device, bits_per_s: float) -> Point:
    """The point with settings that leave nothing open, for links that give a cost model so many bits a second."""
    chosen = point.load().resolve(shape, devices, device, bits_per_s)
    return replace(point, settings=tuple({**dict(point.settings), **chosen}.items()))


class Bench:
    """A cluster of ``devices`` actors with the run's model. A context manager.

    A method variant is verified at the fastest of ``bandwidths`` before its first point on a cluster.
    """

    def __init__(self, config: LatencyConfig, backend: str, devices: int, assets: Assets):
        self.config, self.backend, self.devices, self.assets = config, backend, devices, assets
        self.device = config.emulated_device()
        self.verified: dict[str, Verification] = {}
        self.facts: dict[str, Any] = {}
        self.calibrations: list[Calibration] = []
        self._prepared: dict[str, float] = {}  # seconds of each variant's verifying pass on this cluster
        self._lasting = LastingSession(config, backend, devices, self._begin)

    def __enter__(self) -> Bench:
        self._lasting.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._lasting.__exit__()

    @property
    def session(self) -> Session:
        """The one that stands now."""
        return self._lasting.session

    def _begin(self, session: Session) -> None:
        """Load and calibrate a fresh cluster."""
        config = self.config
        session.load(self.assets.choice, config.tokens, self.assets.weights, self.assets.inputs)
        session.shape(max(config.bandwidths))
        idle = session.assert_silent()
        self.calibrations.append(calibrate(session, config.bandwidths))
        self._prepared.clear()
        self.facts = {
            "start_s": round(session.start_s, 2),
            "reshape_s": round(session.reshape_s, 4),
            "idle_bytes": idle,
            "network": session.network.describe(),
        }

    def measure(self, point: Point, modes: list[str]) -> list[dict[str, Any]]:
        """Rows of one point, ``repeats`` for each mode of the clock. After a fault of the cluster they say failed."""
        try:
            self._prepare(self._resolved(point))
            rows = [row for mode in modes for row in self._measure(point, mode)]
        except (ClusterError, CommError) as error:
            failed = self._row(point, modes[0]) | {"status": "failed", "error": str(error)}
            self._lasting.mend(error)
            return [failed]
        return rows

    def _resolved(self, point: Point) -> Point:
        return resolved(point, self.assets.model.shape, self.devices, self.device, self._bits_per_s(point))

    def _bits_per_s(self, point: Point) -> float:
        """What a cost model divides received bits by: on a star the links' rate, elsewhere what these links come to."""
        return point.bandwidth_mbps * 1e6 * self.session.relative_rate(point.load().traffic)

    def _prepare(self, point: Point) -> None:
        """Build the variant's shards and verify it once in the life of the cluster; ``point`` is resolved."""
        method, key = point.load(), variant(point)
        if key in self._prepared:
            return
        codebooks = self.assets.codebooks.get((method.groups, method.codebook_size))
        if codebooks is not None:  # what is computed of them is in the cache before all ranks want it at once
            method.attach(load_codebooks(codebooks), codebooks.parent)
            method.shard(self.assets.model, 0, self.devices)
        self.session.prepare(key, point.method, dict(point.settings), codebooks)
        self.session.shape(max(self.config.bandwidths))
        ranks = self.session.verify(key)
        self.verified[key] = verify(method, self.devices, ranks, self.assets)
        self._prepared[key] = max(done.compute_s + done.encode_s + done.decode_s for _, done in ranks)

    def _measure(self, point: Point, mode: str) -> list[dict[str, Any]]:
        config, used = self.config, self._resolved(point)
        check = self.verified[variant(used)]
        if not check.ok:
            return [self._row(point, mode) | {"status": "failed", "error": check.fault}]
        expected = self.expected_s(point, mode)
        repeats = max(1, min(config.repeats, int(config.point_budget_s / expected)))
        warmups = 1 if config.point_budget_s > WARM_SHARE * expected else 0
        self.session.shape(point.bandwidth_mbps)
        passes, carried = self.session.measure(variant(used), mode, self.device, repeats, warmups, expected_s=expected)
        wire = None if carried is None else round(carried)
        return [
            self._row(point, mode) | self._figures(point, mode, [ranks[repeat] for ranks in passes], repeat, wire)
            for repeat in range(repeats)
        ]

    def expected_s(self, point: Point, mode: str) -> float:
        """Seconds of one pass on this machine, from the cost model; in execute from the verifying pass."""
        used, bits_per_s = self._resolved(point), self._bits_per_s(point)
        device = Device() if mode == "execute" else self.device
        seconds = used.load().predicted_s(self.assets.model.shape, self.devices, device, bits_per_s)
        return self.config.time_scale * seconds + (self._prepared.get(variant(used), 0.0) if mode == "execute" else 0.0)

    def _figures(
        self, point: Point, mode: str, ranks: list[Pass], repeat: int, wire_bytes: int | None
    ) -> dict[str, Any]:
        """Measured columns of one repeat: the whole group's time, split as the last rank to finish spent it."""
        last = max(ranks, key=lambda done: done.end_s)
        to_ms = 1e3 / self.config.time_scale
        payload = max(done.received_bytes for done in ranks)
        formula = max(self._resolved(point).load().received_bits(self.assets.model.shape, self.devices)) // 8
        elapsed_s = last.end_s - min(done.begin_s for done in ranks)
        late_share = max(done.late_s for done in ranks) / elapsed_s
        residual = None if mode == "execute" else self._residual_pct(point, elapsed_s, ranks)
        notes = self.calibrations[-1].breaches(point.bandwidth_mbps if formula else None)
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
            "payload_bytes": payload,
            "wire_bytes": wire_bytes,
            "overruns": sum(done.overruns for done in ranks),
            "fidelity": "degraded" if notes else "ok",
            "fidelity_note": "; ".join(notes),
            "residual_pct": residual,
            "status": "ok" if payload == formula else "failed",
            "error": "" if payload == formula else f"{payload} payload bytes, the formula says {formula}",
        }

    def _residual_pct(self, point: Point, elapsed_s: float, ranks: list[Pass]) -> float:
        """Measured over modelled: slots, bits over the rate, and the calibrated overhead of each message."""
        messages = max(done.operations for done in ranks)
        model_s = self.expected_s(point, "analytic") + messages * self.calibrations[-1].message_overhead_s
        return 100 * (elapsed_s / model_s - 1)

    def recalibrate(self, points: list[Point]) -> dict[Point, str]:
        """After the last point: is everything still as before? Returns what is wrong with which of the points."""
        self.calibrations.append(calibrate(self.session, self.config.bandwidths))
        wrong = {}
        for point in points:
            silent = not any(point.load().received_bits(self.assets.model.shape, self.devices))
            if found := self.calibrations[-1].breaches(None if silent else point.bandwidth_mbps):
                wrong[point] = "after the last point: " + "; ".join(found)
        return wrong

    def _row(self, point: Point, mode: str) -> dict[str, Any]:
        """The columns that are known before anything is measured."""
        config, model, used = self.config, self.config.model, self._resolved(point)
        formula = max(used.load().received_bits(self.assets.model.shape, self.devices)) / 8
        check = self.verified.get(variant(used))
        return point.columns | {
            "delay_ms": 0.0,
            "loss_pct": 0.0,
            "layers": model.layers,
            "hidden": model.hidden,
            "heads": model.heads,
            "model": model.name,
            "topology": config.topology.name,
            "collective": self.session.collective if config.comm == "tcp" else config.comm,
            "queue_kb": config.queue_kb,
            "network": self.backend,
            "device_profile": config.device.name,
            "compute_mode": mode,
            "time_scale": config.time_scale,
            "speedups_used": dict(used.settings).get("speedups", ""),
            "repeat": 0,
            "formula_bytes": round(formula),
            "free_burst_bytes": self.session.free_burst_bytes if formula else 0,
            "wire_floor_ms": 8e3 * formula / self._bits_per_s(point),
            "verified": None if check is None else check.ok,
            "max_abs_err": None if check is None else check.max_abs_err,
        }

    def analytic_row(self, point: Point) -> dict[str, Any]:
        """The cost model's row of a point: the device's slots and bits over the rate. Nothing of it is measured."""
        latency = 1e3 * self.expected_s(point, "analytic") / self.config.time_scale
        unmeasured: dict[str, Any] = dict.fromkeys(
            ("encode_ms", "wait_ms", "decode_ms", "wire_bytes", "max_abs_err", "verified", "free_burst_bytes")
        )
        row = self._row(point, "analytic") | unmeasured
        wire = row["wire_floor_ms"]
        return row | {
            "network": "analytic",
            "latency_ms": latency,
            "compute_ms": latency - wire,
            "wire_ms": wire,
            "payload_bytes": row["formula_bytes"],
            "overruns": 0,
            "fidelity": "ok",
            "fidelity_note": "",
            "residual_pct": 0.0,
            "status": "ok",
            "error": "",
        }

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


def describe_rows(point: Point, rows: list[dict[str, Any]], seconds: float) -> str:
    """One line about a finished point."""
    if rows[0]["status"] != "ok":
        return f"{point.label}: FAILED: {rows[0]['error']}"
    latencies = sorted(row["latency_ms"] for row in rows)
    marks = "" if all(row["fidelity"] == "ok" for row in rows) else ", degraded"
    return f"{point.label}: {latencies[len(latencies) // 2]:.1f} ms, {len(rows)} repeats{marks} ({seconds:.0f} s)"
