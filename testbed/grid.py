"""The points of a run: what is measured and in which order, and the hashes that identify points and configurations."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.config.contents import content_hashes
from testbed.config.device_mix import share_speeds
from testbed.results.provenance import short_hash
from testbed.results.schema import BASELINE, LATENCY

if TYPE_CHECKING:
    from testbed.config.schema import Config, LatencyConfig
    from testbed.methods.base import Method

# Keys that do not change what is measured. The signature of a configuration leaves them out.
KEYS_OUTSIDE_SIGNATURE = (
    "preset",
    "resume",
    "retry_failed",
    "retry_degraded",
    "force",
    "results_dir",
    "timeout_s",
)


@dataclass(frozen=True)
class Point:
    """One method variant on ``devices`` devices, with links of ``bandwidth_mbps`` Mbps and ``tokens`` content tokens.

    settings: of the method, as (key, value) pairs. speeds: of the ranks, relative to the fastest one, if the partition
    is in proportion to them; empty for an equal partition.
    """

    method: str
    settings: tuple[tuple[str, Any], ...]
    devices: int
    bandwidth_mbps: float
    tokens: int
    speeds: tuple[float, ...] = ()

    @property
    def partition(self) -> str:
        """How the work is divided: ``equal`` or ``speed``, as in the configuration key."""
        return "speed" if self.speeds else "equal"

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that identify this point in a row."""
        settings = dict(self.settings)
        return {
            "method": self.method,
            "groups": settings.get("groups", 0),
            "optimizations": settings.get("optimizations", ""),
            "settings": self._other_settings,
            "codec": "vq" if "groups" in settings else settings.get("codec", "fp32"),
            "codebook_size": settings.get("codebook_size", 0),
            "partition": self.partition,
            "devices": self.devices,
            "bandwidth_mbps": self.bandwidth_mbps,
            "tokens": self.tokens,
        }

    @property
    def _other_settings(self) -> str:
        """Settings that have no own column and differ from the method's defaults, for example ``gather=kv``."""
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
        """A short hash. It is the same in every process and on every machine."""
        return short_hash(dataclasses.asdict(self))

    @property
    def label(self) -> str:
        """A text for messages: ``astra G=16, 4 devices, 1024 tokens, 10 Mbps``."""
        plural, by = "" if self.devices == 1 else "s", " by speed" if self.speeds else ""
        where = f"{self.devices} device{plural}{by}, {self.tokens} tokens, {self.bandwidth_mbps:g} Mbps"
        return f"{self.load().label}, {where}"

    def load(self) -> Method:
        """The method with its settings."""
        from testbed.methods import load_method

        return load_method(self.method, self.speeds, **dict(self.settings))


def batches(config: LatencyConfig) -> list[tuple[int, list[Point]]]:
    """(devices of the emulated cluster, points that it measures), one pair for each value of ``devices``.

    The baseline runs on one device and is the same on any cluster, so only the first batch has it. Points with the
    same number of tokens follow each other, because the cluster loads model and input for each number of tokens.
    The numbers of tokens, and the points of each, are in random order, which depends on ``seed`` only.
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
    """All points, in the order in which they are measured."""
    return [point for _, batch in batches(config) for point in batch]


def config_signature(config: Config) -> str:
    """A short hash of everything that changes what is measured. The order of list items does not change it.

    What the configuration's files and folders hold takes the place of their paths. Raises ConfigError and
    EnvironmentFault for those that cannot be read (``content_hashes``).
    """
    fields = {key: value for key, value in dataclasses.asdict(config).items() if key not in KEYS_OUTSIDE_SIGNATURE}
    for key, held in content_hashes(config).items():
        *sections, name = key.split(".")
        part: dict[str, Any] = fields
        for section in sections:
            part = part[section]
        part[name] = held
    return short_hash(_ordered(fields))


def _ordered(value: Any) -> Any:
    """The same data with all lists sorted."""
    if isinstance(value, dict):
        return {key: _ordered(item) for key, item in value.items()}
    return sorted(value) if isinstance(value, list) else value
