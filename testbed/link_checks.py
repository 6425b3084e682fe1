"""What a configuration says of links, taken together: keys that are fine by themselves may not fit each other."""

from __future__ import annotations

from testbed.comm.schedule import AUTO, HIERARCHICAL
from testbed.errors import ConfigError
from testbed.network.links import MOST_DEVICES
from testbed.network.shaping import QUEUE_KB
from testbed.schema import Config, FidelityConfig, LatencyConfig


def check_links(config: Config) -> None:
    """ConfigError where topology, collective, queues, transport and backend do not go together."""
    if max(config.devices) > MOST_DEVICES:
        raise ConfigError("devices", max(config.devices), f"must be from 1 to {MOST_DEVICES} with emulated links")
    topology, collective = config.topology, config.collective
    if config.comm == "gloo" and collective != AUTO:
        raise ConfigError("collective", collective, f"must be {AUTO} with comm=gloo, which gathers in a way of its own")
    for devices in config.devices:
        graph = topology.graph(devices)
        if collective == HIERARCHICAL and devices > 1 and len(graph.rooms) < 2:
            allowed = f"needs devices behind two switches at least; topology={topology.name} has none such"
            raise ConfigError("collective", collective, allowed)
        if config.network.backend == "loopback" and not graph.is_star:
            allowed = "needs network=mininet: loopback paces one link of each device, as topology=star"
            raise ConfigError("topology", topology.name, allowed)
        if not graph.switches:
            _check_queues(config, f"it is of switches' ports, and topology={topology.name} has no switch")
    if isinstance(config, FidelityConfig) and "tclink" in config.shapers:
        _check_queues(config, "shaper tclink has a queue of its own")


def _check_queues(config: Config, reason: str) -> None:
    """ConfigError unless queues have their usual length."""
    lengths = {"queue_kb": [config.queue_kb]} if isinstance(config, LatencyConfig) else {}
    lengths |= {"queues_kb": config.queues_kb} if isinstance(config, FidelityConfig) else {}
    for key, queues in lengths.items():
        for queue in queues:
            if queue != QUEUE_KB:
                raise ConfigError(key, f"{queue:g}", f"must be {QUEUE_KB:g}: {reason}")
