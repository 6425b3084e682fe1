"""The points of a sweep: what is measured, in which order, and how a sweep and its points are recognized again."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.config.device_mix import share_speeds
from testbed.results.provenance import short_hash
from testbed.results.schema import BASELINE, LATENCY

if TYPE_CHECKING:
    from testbed.config.schema import Config, LatencyConfig
    from testbed.methods.base import Method

NOT_MEASURED = (
    "preset",
    "resume",
    "retry_failed",
    "retry_degraded",
    "force",
    "results_dir",
    "timeout_s",
)  # keys that do not change any number


@dataclass(frozen=True)
class Point:
    """One method variant on ``devices`` devices with links of ``bandwidth_mbps`` Mbps, ``tokens`` content tokens."""

    method: str
    settings: tuple[tuple[str, Any], ...]
    devices: int
    bandwidth_mbps: float
    tokens: int
    speeds: tuple[float, ...] = ()  # of the ranks, where their shares are in proportion; else these are equal

    @property
    def partition(self) -> str:
        """By what the work is shared out: speed or equal, as in the key of that name."""
        return "speed" if self.speeds else "equal"

    @property
    def columns(self) -> dict[str, Any]:
        """What identifies this point in a row."""
        settings = dict(self.settings)
        return {
            "method": self.method,
            "groups": settings.get("groups", 0),
            "codebook_size": settings.get("codebook_size", 0),
            "optimizations": settings.get("optimizations", ""),
            "codec": "vq" if "groups" in settings else settings.get("codec", "fp32"),
            "settings": self._other_settings,
            "devices": self.devices,
            "partition": self.partition,
            "bandwidth_mbps": self.bandwidth_mbps,
            "tokens": self.tokens,
        }

    @property
    def _other_settings(self) -> str:
        """Settings that have no column of their own and are not the method's standard, as ``gather=kv``."""
        from testbed.methods import standard_settings

        standard = standard_settings(self.method)
        others = sorted((key, value) for key, value in self.settings if key not in LATENCY.columns)
        return ",".join(f"{key}={value}" for key, value in others if value != standard[key])

    @property
    def key(self) -> tuple[Any, ...]:
        """The point's key in ``RunFolder.points()``."""
        return LATENCY.key(self.columns)

    @property
    def signature(self) -> str:
        """Short hash, the same in every process and on every machine."""
        return short_hash(dataclasses.asdict(self))

    @property
    def label(self) -> str:
        """For people: ``astra G=16, 4 devices, 1024 tokens, 10 Mbps``."""
        plural, by = "" if self.devices == 1 else "s", " by speed" if self.speeds else ""
        where = f"{self.devices} device{plural}{by}, {self.tokens} tokens, {self.bandwidth_mbps:g} Mbps"
        return f"{self.load().label}, {where}"

    def load(self) -> Method:
        """The method with its settings."""
        from testbed.methods import load_method

        return load_method(self.method, self.speeds, **dict(self.settings))


def batches(config: LatencyConfig) -> list[tuple[int, list[Point]]]:
    """(devices of the emulated cluster, its points), one for each value of ``devices``.

    The baseline runs on one device and is the same on any cluster, so only the first batch has it. Points of one
    number of tokens follow each other, as a cluster is loaded anew for each; numbers, and points within them, are in
    random order by ``seed``.
    """
    order = random.Random(config.seed)
    result = []
    for index, devices in enumerate(config.devices):
        batch: list[Point] = []
        for tokens in order.sample(config.tokens, len(config.tokens)):
            part = [
                Point(name, tuple(settings.items()), 1 if name == BASELINE else devices, bandwidth, tokens, speeds)
                for name, settings in config.variants()
                if name != BASELINE or index == 0
                for speeds in share_speeds(config, name, devices)
                for bandwidth in config.bandwidths
            ]
            order.shuffle(part)
            batch += part
        result.append((devices, batch))
    return [(devices, batch) for devices, batch in result if batch]


def points(config: LatencyConfig) -> list[Point]:
    """All points in the order in which they are measured."""
    return [point for _, batch in batches(config) for point in batch]


def config_signature(config: Config) -> str:
    """Short hash of everything that changes what is measured. The order of list items does not."""
    fields = {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_MEASURED}
    return short_hash(_ordered(fields))


def _ordered(value: Any) -> Any:
    """The same data with sorted lists."""
    if isinstance(value, dict):
        return {key: _ordered(item) for key, item in value.items()}
    return sorted(value) if isinstance(value, list) else value
