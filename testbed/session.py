"""One emulated cluster: bring it up, load a model, run methods, change the links, tear it down."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from testbed.cluster.conditions import Conditions, Counters, conditions
from testbed.cluster.nodes import Cluster
from testbed.cluster.processor_time import read_processor_time
from testbed.cluster.worker import ForwardTiming
from testbed.comm.pacing import BurstCredit
from testbed.comm.schedule import AUTO
from testbed.config.schema import Config, LatencyConfig
from testbed.device.spec import Device
from testbed.limits import throttled_s
from testbed.models.weights import Choice
from testbed.network.backend import Network
from testbed.network.link_watch import LinkWatch
from testbed.network.sandbox import descendants
from testbed.network.shaping import QUEUE_KB, SHAPERS
from testbed.output import Output
from topologies.link_graph import Hop, LinkGraph

ANSWER_S = 5.0  # a rank's answer may arrive this much later than the end of the operation that it reports
COMPUTE_TIMEOUT_S = 300.0  # for loading a model, and for one pass with real arithmetic
COUNTED_STARTS = 8  # common starts over which the bytes of one start are averaged
LAST_ACK_S = 0.25  # by then the last acknowledgements have left: Linux delays one by 0.2 s at most (TCP_DELACK_MAX)
IDLE_WATCH_S = 0.5  # how long the bytes on the idle data network are counted


def make_network(backend: str, graph: LinkGraph) -> Network:
    """The network backend of this name. Mininet is imported only if it is used, because it needs Linux."""
    if backend == "mininet":
        from testbed.network.mininet import MininetNetwork

        return MininetNetwork(graph)
    from testbed.network.loopback import LoopbackNetwork

    return LoopbackNetwork(graph)


def open_session(config: Config, backend: str, devices: int) -> Session:
    """The session for an experiment's configuration. The caller enters it."""
    scale = 1.0 if config.time_scale == AUTO else config.time_scale
    queue_kb = config.queue_kb if isinstance(config, LatencyConfig) else QUEUE_KB
    graph = config.topology.graph(devices)
    return Session(backend, graph, scale, config.timeout_s, config.all_gather, queue_kb)


@dataclass(frozen=True)
class MeasuredPass:
    """One timed pass: the timing of each rank, the bytes on the busiest hop, and what else happened meanwhile.

    wire_bytes: with packet headers, without the common start; None without counters.
    """

    ranks: list[ForwardTiming]
    wire_bytes: float | None
    conditions: Conditions


class Session:
    """An actor on each device of a graph, joined by the graph's emulated links. A context manager.

    time_scale: links are slower than requested by this factor, like the device's clock. timeout_s: seconds that joining
    may take, and that one operation may take beyond the time of its bytes on the link.
    all_gather: an algorithm of testbed.comm.schedule, or ``auto`` for the one that suits the links. queue_kb: queue
    length of switch ports.
    """

    def __init__(
        self,
        backend: str,
        graph: LinkGraph,
        time_scale: float = 1.0,
        timeout_s: float = 30.0,
        all_gather: str = AUTO,
        queue_kb: float = QUEUE_KB,
    ):
        self.graph, self.devices = graph, graph.devices
        self.time_scale, self.timeout_s, self.queue_kb = time_scale, timeout_s, queue_kb
        self.all_gather = graph.all_gather(all_gather)
        self.network = make_network(backend, graph)
        self._stack = contextlib.ExitStack()
        self.start_s = self.reshape_s = 0.0

    def __enter__(self) -> Session:
        begin = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.network)
            self.cluster = stack.enter_context(Cluster(self.network, self.devices, self.timeout_s + ANSWER_S))
            self.join()
            self._stack = stack.pop_all()
        self.start_s = time.monotonic() - begin
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def join(self) -> None:
        """Connect the actors over the data network. Needed again after a failed collective, which breaks streams."""
        addresses = self.cluster.call_each(
            "listen", [(ip,) for ip in self.network.device_data_ips], timeout_s=self.timeout_s, phase="listen"
        )
        token = os.urandom(16)
        self.cluster.call(
            "connect", addresses, token, self.timeout_s, timeout_s=self.timeout_s + ANSWER_S, phase="connect"
        )

    def shape(self, bandwidth_mbps: float, shaper: str = SHAPERS[0], queue_kb: float | None = None) -> None:
        """Set the bandwidth of all data links (in the emulated device's time) while the cluster runs.

        queue_kb: queue length of switch ports, if it differs from the session's.
        """
        begin = time.monotonic()
        rate_bps = bandwidth_mbps * 1e6 / self.time_scale
        self.network.shape(rate_bps, shaper, self.queue_kb if queue_kb is None else queue_kb)
        self._shaped = self.network.link_counters()
        links = [self.network.links_of(rank, self.all_gather) for rank in range(self.devices)]
        arguments = [(of_rank, self.time_scale) for of_rank in links]
        self.cluster.call_each("set_links", arguments, timeout_s=self.timeout_s, phase="shape")
        pacings = [route.pacing for of_rank in links for route in of_rank.routes.values()]
        self._charges_burst_credit = all(isinstance(p, BurstCredit) for p in pacings)
        self.reshape_s = time.monotonic() - begin

    @property
    def burst_credit_bytes(self) -> int:
        """Burst credit of an idle link for which messages are not charged; 0 if they are charged for it."""
        return 0 if self._charges_burst_credit else self.network.bucket_bytes

    def idle_bytes(self) -> int | None:
        """Bytes on the data network while no operation runs; None if the backend has no counters."""
        time.sleep(LAST_ACK_S)
        before = self.network.carried_bytes()
        time.sleep(IDLE_WATCH_S)
        after = self.network.carried_bytes()
        return None if before is None or after is None else sum(after.values()) - sum(before.values())

    def load(self, choice: Choice[Any], tokens: int, weights: list[Path], inputs: torch.Tensor) -> None:
        """Give every actor the model of these files (``load_model``) and the input, in place of its earlier ones."""
        self.cluster.call("load", choice, tokens, weights, inputs, timeout_s=COMPUTE_TIMEOUT_S, phase="load")

    def prepare(
        self, key: str, name: str, speeds: Sequence[float], settings: dict[str, Any], codebooks: Path | None
    ) -> None:
        """Have every actor build its shard of a method. speeds: of the ranks, as in ``load_method``."""
        arguments = (key, name, speeds, settings, codebooks)
        self.cluster.call("prepare", *arguments, timeout_s=COMPUTE_TIMEOUT_S, phase=f"prepare {key}")

    def verify(self, key: str) -> list[tuple[Output, ForwardTiming]]:
        """One pass with real arithmetic over the links as they are now. Returns (output, timing) by rank."""
        return self.cluster.call("verify", key, timeout_s=COMPUTE_TIMEOUT_S, phase=f"verify {key}")

    def measure(
        self,
        key: str,
        mode: str,
        devices: Sequence[Device],
        repeats: int,
        warmups: int,
        expected_s: float,
        computing_s: float,
    ) -> list[MeasuredPass]:
        """Timed passes. devices: the emulated device of each rank.

        expected_s: expected time of one pass on this machine's clock; the call fails after ten times that and a minute.
        computing_s: how long a rank may wait for others' computations, beyond ``timeout_s``.
        """
        start_bytes = self._start_bytes()
        arguments = [(key, mode, device, self.time_scale, computing_s) for device in devices]
        passes = []
        before = self._counters()
        for number in range(warmups + repeats):
            with LinkWatch(self.network.link_counters, self.network.token_buckets) as watch:
                limit = 60 + 10 * expected_s
                ranks = self.cluster.call_each("measure", arguments, timeout_s=limit, phase=f"measure {key}")
            after = self._counters()
            seen = conditions(self.graph, self._shaped, before, after, watch)
            before = after
            if number >= warmups:
                passes.append(MeasuredPass(ranks, _without(seen, start_bytes), seen))
        return passes

    def _counters(self) -> Counters:
        """What the machine, TCP and the links have counted so far."""
        tcp = self.cluster.call("counters", timeout_s=self.timeout_s, phase="counters")
        processors = read_processor_time([os.getpid(), *(process.pid for process in descendants())])
        return Counters(time.monotonic(), processors, throttled_s(), self.network.link_counters(), tcp)

    def _start_bytes(self) -> dict[Hop, float] | None:
        """Bytes that the common start of a pass puts on each hop. They belong to the emulator, not to the method."""
        before = self.network.carried_bytes()
        if before is None:
            return None
        self.cluster.call("time_operation", "nothing", 0, COUNTED_STARTS, timeout_s=self.timeout_s, phase="start")
        after = self.network.carried_bytes() or before
        return {hop: (after[hop] - before[hop]) / COUNTED_STARTS for hop in before}

    def rank_times(
        self, operation: str, payload_bytes: int, repeats: int, peers: Sequence[Sequence[int]] | None = None
    ) -> list[list[tuple[float, float]]]:
        """(begin, end) of one operation on each rank, ``[rank][repeat]``, in seconds of the machine's clock.

        operation: see testbed.cluster.microbenchmarks. peers: of each rank, for operation ``exchange``.
        """
        by_rank = [()] * self.devices if peers is None else peers
        arguments = [(operation, payload_bytes, repeats, of_rank) for of_rank in by_rank]
        return self.cluster.call_each("time_operation", arguments, timeout_s=COMPUTE_TIMEOUT_S, phase=operation)

    def retransmits(self) -> int:
        """TCP segments that the ranks' data connections have retransmitted so far."""
        found = self.cluster.call("counters", timeout_s=self.timeout_s, phase="counters")
        return sum(each.retransmits for of_rank in found for each in of_rank.values() if each is not None)

    def congestion_control(self) -> list[str]:
        """The congestion controls in force on the ranks' data connections, each once; ``cubic`` where permitted."""
        found = self.cluster.call("congestion_control", timeout_s=self.timeout_s, phase="counters")
        return sorted({name for names in found for name in names})

    def collective_s(self, operation: str, payload_bytes: int, repeats: int) -> list[float]:
        """Seconds of one operation, from the first rank's begin to the last rank's end, by repeat."""
        calls = self.rank_times(operation, payload_bytes, repeats)
        return [max(end for _, end in ranks) - min(begin for begin, _ in ranks) for ranks in zip(*calls, strict=True)]


def _without(seen: Conditions, start_bytes: Mapping[Hop, float] | None) -> float | None:
    """Bytes on the busiest hop, without those of the common start of a pass; None without counters."""
    if seen.carried_bytes is None or start_bytes is None:
        return None
    return max((size - start_bytes[hop] for hop, size in seen.carried_bytes.items()), default=0.0)
