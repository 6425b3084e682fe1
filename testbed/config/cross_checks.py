"""Checks of keys against each other: values that are allowed alone may not be allowed together."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields
from typing import Any

from testbed.comm.schedule import AUTO, HIERARCHICAL
from testbed.config.device_mix import check_mix, share_speeds
from testbed.config.schema import Config, DecoderLatencyConfig, FidelityConfig, LatencyConfig, MethodsConfig
from testbed.errors import ConfigError
from testbed.network.shaping import QUEUE_KB
from testbed.results.schema import ANALYTIC
from topologies.link_graph import MOST_DEVICES

MOST_POINTS = 100_000  # more would take months to measure and gigabytes to list


def check_size(config: Config) -> None:
    """Raise ConfigError for a grid of more than MOST_POINTS points. It names the longest list."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "methods"}
    sizes = {key: len(items) for key, items in values.items() if isinstance(items, list)}
    total = math.prod(sizes.values())
    if isinstance(config, MethodsConfig):
        variants = 0
        for name, settings in config.settings.items():
            axes = {f"{name}.{key}": len(items) for key, items in settings.items() if isinstance(items, list)}
            variants += math.prod(axes.values())
            sizes |= axes
        total *= variants
    if total > MOST_POINTS:
        longest = max(sizes, key=sizes.__getitem__)
        allowed = f"makes {total} points together with the other lists; a run may have {MOST_POINTS}"
        raise ConfigError(longest, f"{sizes[longest]} values", allowed)


def check_links(config: Config) -> None:
    """Raise ConfigError if topology, all-gather, queues and backend do not fit each other."""
    if max(config.devices) > MOST_DEVICES:
        raise ConfigError("devices", max(config.devices), f"must be from 1 to {MOST_DEVICES} with emulated links")
    topology, all_gather = config.topology, config.all_gather
    for devices in config.devices:
        graph = topology.graph(devices)
        if all_gather == HIERARCHICAL and devices > 1 and len(graph.subnets) < 2:
            allowed = f"needs devices at two or more switches; topology={topology.name} has fewer"
            raise ConfigError("all_gather", all_gather, allowed)
        if config.network.backend == "loopback" and not graph.is_star:
            allowed = "needs network=mininet; loopback emulates one link for each device, as in topology=star"
            raise ConfigError("topology.name", topology.name, allowed)
        if devices > 1 and not graph.switches:
            _check_queues(config, f"queues belong to switch ports, and topology={topology.name} has no switch")
    if isinstance(config, FidelityConfig) and "tclink" in config.shapers:
        _check_queues(config, "shaper tclink has a queue of its own")


def _check_queues(config: Config, reason: str) -> None:
    """Raise ConfigError unless all queues have the default length."""
    lengths = {"queue_kb": [config.queue_kb]} if isinstance(config, LatencyConfig) else {}
    lengths |= {"queues_kb": config.queues_kb} if isinstance(config, FidelityConfig) else {}
    for key, queues in lengths.items():
        for queue in queues:
            if queue != QUEUE_KB:
                raise ConfigError(key, f"{queue:g}", f"must be {QUEUE_KB:g}: {reason}")


def check_methods(config: MethodsConfig) -> None:
    """Raise ConfigError if methods, model, devices, tokens and partition do not fit each other.

    Every method checks every point. A variant is accepted if it fits at least one combination of devices, tokens and
    partition. Its other points are skipped when the run begins. Where segments are checked, all variants of a method
    together are accepted if one of them is, because settings of ASTRA exclude each other.
    """
    if max(config.devices) > max(config.tokens):
        raise ConfigError("devices", max(config.devices), f"must be from 1 to tokens={max(config.tokens)}")
    profiles = {f"profiles.{name}": profile for name, profile in config.profiles.items()}
    profiles |= {"device": config.device} if isinstance(config, LatencyConfig) else {}
    references = {f"{key}.reference_model": profile.reference_model for key, profile in profiles.items()}
    models = references if isinstance(config, DecoderLatencyConfig) else {"model": config.model, **references}
    for key, sizes in models.items():
        if sizes.hidden % sizes.heads:
            raise ConfigError(f"{key}.heads", sizes.heads, f"must divide {key}.hidden={sizes.hidden}")

    # This imports torch, which takes a second. The checks above do not need it.
    from testbed.methods import load_method, method_names

    if isinstance(config, LatencyConfig):
        check_mix(config)
    if isinstance(config, DecoderLatencyConfig):
        for name in config.methods:
            if not load_method(name).causal:
                allowed = ", ".join(each for each in method_names() if load_method(each).causal)
                reason = f"supports Vision Transformers only; with model={config.model.name} allowed: {allowed}"
                raise ConfigError("methods", name, reason)
    for name, variants in itertools.groupby(config.variants(), lambda variant: variant[0]):
        found = [_misfit(config, name, settings) for _, settings in variants]
        faults = [fault for fault in found if fault is not None]
        if faults and (isinstance(config, LatencyConfig) or len(faults) == len(found)):
            raise faults[0]


def _misfit(config: MethodsConfig, name: str, settings: dict[str, Any]) -> ConfigError | None:
    """Why a variant fits no combination of devices, tokens and partition; None if it fits one."""
    from testbed.methods import load_method

    shapes, worlds = [config.model.shape(tokens) for tokens in config.tokens], config.worlds(name)
    splits = [(world, ()) for world in worlds]
    if isinstance(config, LatencyConfig):
        splits = [(world, speeds) for world in worlds for speeds in share_speeds(config, name, world)]
    faults = []
    for shape, (world, speeds) in itertools.product(shapes, splits):
        try:
            load_method(name, speeds, **settings).check(shape, world)
            return None
        except ConfigError as fault:
            faults.append(fault)
    return faults[0]


def check_together(config: Config) -> None:
    """Raise ConfigError for a value that this runner, or another value, does not support."""
    if isinstance(config, FidelityConfig) and min(config.devices) < 2:
        raise ConfigError(
            "devices", min(config.devices), "must be whole numbers >= 2: one device has no link to measure"
        )
    if config.time_scale == AUTO and not isinstance(config, LatencyConfig):
        raise ConfigError("time_scale", AUTO, f"must be a number from 0.1 to 1000 for runner {config.runner}")
    if config.emulates and config.network.backend == ANALYTIC:
        if config.runner != "latency":
            raise ConfigError(
                "network.backend", ANALYTIC, f"must be a backend with links: runner {config.runner} measures them"
            )
        if isinstance(config, LatencyConfig) and config.compute_mode != "auto":
            raise ConfigError(
                "compute_mode", config.compute_mode, f"must be auto for network={ANALYTIC}, which runs nothing"
            )
