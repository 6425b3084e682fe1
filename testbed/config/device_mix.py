"""Unequal devices: the profiles that ``mix`` names, what each rank plays, and how work is shared out."""

from __future__ import annotations

import itertools

from omegaconf import OmegaConf

from testbed.config.fields import CONF, choices
from testbed.config.schema import DeviceProfile, LatencyConfig
from testbed.device.spec import Device
from testbed.errors import ConfigError, nearest
from testbed.results.schema import BASELINE


def load_profiles(mix: str) -> dict[str, DeviceProfile]:
    """The profiles of ``mix``, names in conf/device/ joined by +; their values are not checked. Raises ConfigError."""
    profiles = {}
    for name in mix.split("+") if mix else []:
        if name not in choices("device"):
            raise ConfigError("mix", name, nearest(name, choices("device")))
        text = (CONF / "device" / f"{name}.yaml").read_text()
        if "${" in text:
            raise ConfigError("mix", name, "must be a profile that is written out: ${...} is not filled in")
        try:
            merged = OmegaConf.merge(OmegaConf.structured(DeviceProfile), OmegaConf.create(text))
            profiles[name] = OmegaConf.to_object(merged)
        except Exception as error:  # of OmegaConf and of its YAML parser
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError("mix", name, f"must be a profile of a device: {reason}") from None
    return profiles


def check_mix(config: LatencyConfig) -> None:
    """ConfigError for a mix of more devices than there are, and for shares by speed where all are equally fast."""
    most = max(config.devices)
    if len(config.mix.split("+")) > most:
        raise ConfigError("mix", config.mix, f"must name {most} devices at most, as many as there are")
    if "speed" in config.shares and len({profile.emulated().macs_per_s for profile in config.profiles.values()}) < 2:
        raise ConfigError("shares", "speed", "must be equal, or mix must name devices of several speeds")


def emulated_devices(config: LatencyConfig, method: str, count: int) -> list[Device]:
    """What each of ``count`` ranks plays: the devices of the mix in its order, from the first again after the last.

    The baseline runs on one device: the fastest.
    """
    if method == BASELINE or not config.mix:
        return [config.emulated_device()] * count
    names = itertools.islice(itertools.cycle(config.mix.split("+")), count)
    return [config.profiles[name].emulated() for name in names]


def share_speeds(config: LatencyConfig, method: str, count: int) -> list[tuple[float, ...]]:
    """``Method.speeds`` for each of ``config.shares``; the fastest rank's is 1. The baseline has nothing to share."""
    if method == BASELINE:
        return [()]
    speeds = [device.macs_per_s for device in emulated_devices(config, method, count)]
    relative = tuple(speed / max(speeds) for speed in speeds)
    return [relative if shares == "speed" else () for shares in config.shares]
