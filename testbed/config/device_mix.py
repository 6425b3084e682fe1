"""Heterogeneous devices: the profiles that ``device_mix`` names, the device of each rank, and the ranks' speeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from testbed.config import fields
from testbed.config.compose import profile_origins
from testbed.config.device_profile import DeviceProfile
from testbed.config.fields import choices
from testbed.config.origins import Origins
from testbed.config.schema import LatencyConfig
from testbed.device.spec import Device
from testbed.errors import ConfigError, nearest
from testbed.results.schema import BASELINE


def load_profiles(key: str, names: Sequence[str], origins: Origins) -> dict[str, DeviceProfile]:
    """Read these profiles of conf/device/, which ``key`` names. Adds the origins of their values.

    Their values are not checked here. Raises ConfigError for an unknown name or a file that is not a profile.
    """
    profiles = {}
    for name in names:
        if name not in choices("device"):
            raise ConfigError(key, name, nearest(name, choices("device")))
        origins.update(profile_origins(name))
        try:
            profiles[name] = read_profile(fields.CONF / "device" / f"{name}.yaml")
        except OmegaConfBaseException as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(key, name, f"must be a profile of a device: {reason}") from None
    return profiles


def read_profile(path: Path) -> DeviceProfile:
    """The profile in a file. Raises OmegaConfBaseException for a file that is not one. Values are not checked."""
    profile = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DeviceProfile), OmegaConf.load(path)))
    assert isinstance(profile, DeviceProfile)
    return profile


def check_mix(config: LatencyConfig) -> None:
    """Raise ConfigError for a profile that contradicts itself, for a mix of more devices than the run has, and for
    partition=speed with equal speeds.
    """
    if not config.device_mix:
        config.device.emulated()
    for name, profile in config.profiles.items():
        profile.emulated(f"profiles.{name}")
    most = max(config.devices)
    if len(config.device_mix.split("+")) > most:
        raise ConfigError("device_mix", config.device_mix, f"must name at most {most} devices, as many as the run has")
    if "speed" in config.partition and len({profile.emulated().macs_per_s for profile in config.profiles.values()}) < 2:
        raise ConfigError("partition", "speed", "must be equal, or device_mix must name devices of different speeds")


def emulated_devices(config: LatencyConfig, method: str, count: int) -> list[Device]:
    """The emulated device of each of ``count`` ranks: those of ``device_mix`` in its order, repeated as needed.

    The baseline runs on one device, the fastest one.
    """
    if method == BASELINE or not config.device_mix:
        return [config.emulated_device()] * count
    names = itertools.islice(itertools.cycle(config.device_mix.split("+")), count)
    return [config.profiles[name].emulated() for name in names]


def share_speeds(config: LatencyConfig, method: str, count: int) -> list[tuple[float, ...]]:
    """``Method.speeds`` for each value of ``config.partition``: relative speeds by rank, or () for an equal partition.

    The fastest rank has speed 1. The baseline runs on one device and has no speeds.
    """
    if method == BASELINE:
        return [()]
    work = config.device.reference_work
    seconds = [device.seconds(work) for device in emulated_devices(config, method, count)]
    relative = tuple(min(seconds) / each for each in seconds)
    return [relative if partition == "speed" else () for partition in config.partition]
