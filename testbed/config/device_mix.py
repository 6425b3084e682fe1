"""Unequal devices: the profiles that ``device_mix`` names, what each rank plays, and how work is shared out."""

from __future__ import annotations

import itertools

from omegaconf import OmegaConf

from testbed.config.fields import CONF, choices
from testbed.config.schema import DeviceProfile, LatencyConfig
from testbed.device.spec import Device
from testbed.errors import ConfigError, nearest
from testbed.results.schema import BASELINE


def load_profiles(device_mix: str) -> dict[str, DeviceProfile]:
    """The profiles that ``device_mix`` names, names in conf/device/ joined by +. Raises ConfigError.

    Their values are not checked.
    """
    profiles = {}
    for name in device_mix.split("+") if device_mix else []:
        if name not in choices("device"):
            raise ConfigError("device_mix", name, nearest(name, choices("device")))
        text = (CONF / "device" / f"{name}.yaml").read_text()
        if "${" in text:
            raise ConfigError("device_mix", name, "must be a profile that is written out: ${...} is not filled in")
        try:
            merged = OmegaConf.merge(OmegaConf.structured(DeviceProfile), OmegaConf.create(text))
            profiles[name] = OmegaConf.to_object(merged)
        except Exception as error:  # of OmegaConf and of its YAML parser
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError("device_mix", name, f"must be a profile of a device: {reason}") from None
    return profiles


def check_mix(config: LatencyConfig) -> None:
    """ConfigError for a mix of more devices than there are, and for shares by speed where all are equally fast."""
    most = max(config.devices)
    if len(config.device_mix.split("+")) > most:
        raise ConfigError("device_mix", config.device_mix, f"must name {most} devices at most, as many as there are")
    if "speed" in config.partition and len({profile.emulated().macs_per_s for profile in config.profiles.values()}) < 2:
        raise ConfigError("partition", "speed", "must be equal, or mix must name devices of several speeds")


def emulated_devices(config: LatencyConfig, method: str, count: int) -> list[Device]:
    """What each of ``count`` ranks plays: the devices of the mix in its order, from the first again after the last.

    The baseline runs on one device: the fastest.
    """
    if method == BASELINE or not config.device_mix:
        return [config.emulated_device()] * count
    names = itertools.islice(itertools.cycle(config.device_mix.split("+")), count)
    return [config.profiles[name].emulated() for name in names]


def share_speeds(config: LatencyConfig, method: str, count: int) -> list[tuple[float, ...]]:
    """``Method.speeds`` for each value of ``config.partition``; the fastest rank's is 1.

    The baseline runs on one device and has no speeds.
    """
    if method == BASELINE:
        return [()]
    speeds = [device.macs_per_s for device in emulated_devices(config, method, count)]
    relative = tuple(speed / max(speeds) for speed in speeds)
    return [relative if shares == "speed" else () for shares in config.partition]
