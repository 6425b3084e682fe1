"""One emulated cluster while it lives: bring up, load a model, run methods, re-shape the links, tear down."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from testbed.cluster.nodes import Cluster
from testbed.cluster.worker import ForwardTiming
from testbed.comm.pacing import CreditHold
from testbed.comm.schedule import AUTO
from testbed.config.schema import Config, LatencyConfig
from testbed.device.spec import Device
from testbed.models.weights import Choice
from testbed.network.backend import Network
from testbed.network.sandbox import scratch
from testbed.network.shaping import QUEUE_KB, SHAPERS
from testbed.output import Output
from topologies.link_graph import Hop, LinkGraph

ANSWER_S = 5.0  # a rank's answer may take so much longer than the operation it reports on
COMPUTE_TIMEOUT_S = 300.0  # loading a model, one pass with real arithmetic
LINE_UPS = 8
SETTLE_S = 0.25  # by then the last acknowledgements have left: Linux delays one for 0.2 s at most (TCP_DELACK_MAX)
QUIET_S = 0.5  # how long the data network is watched when it should be silent


def make_network(backend: str, graph: LinkGraph) -> Network:
    """The network backend of this name. Mininet is imported only where it is used: it needs Linux."""
    if backend == "mininet":
        from testbed.network.mininet import MininetNetwork

        return MininetNetwork(graph)
    from testbed.network.loopback import LoopbackNetwork

    return LoopbackNetwork(graph)


def open_session(config: Config, backend: str, devices: int) -> Session:
    """The session that an experiment's configuration asks for; to be entered."""
    scale = 1.0 if config.time_scale == AUTO else config.time_scale
    queue_kb = config.queue_kb if isinstance(config, LatencyConfig) else QUEUE_KB
    graph = config.topology.graph(devices)
    return Session(backend, graph, config.transport, scale, config.timeout_s, config.all_gather, queue_kb)


class Session:
    """An actor on each device of a graph, joined by its emulated links. A context manager.

    transport: ``tcp`` or ``gloo``. time_scale: links run this many times slower than asked for, as the device's clock
    does.
    timeout_s: the longest that joining, or one operation beyond what its bytes need on the link, may take. queue_kb: of
    switches' ports. collective: how ranks gather (testbed.comm.schedule), or ``auto``: as it suits the links.
    """

    def __init__(
        self,
        backend: str,
        graph: LinkGraph,
        transport: str = "tcp",
        time_scale: float = 1.0,
        timeout_s: float = 30.0,
        all_gather: str = AUTO,
        queue_kb: float = QUEUE_KB,
    ):
        self.graph, self.devices, self.transport = graph, graph.devices, transport
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
        """Connect the actors over the data network; again after a collective failed, since streams are then torn."""
        addresses = self.cluster.call_each(
            "listen", [(ip,) for ip in self.network.device_data_ips], timeout_s=self.timeout_s, phase="listen"
        )
        if self.transport == "gloo":
            store = str(scratch() / f"gloo-{time.monotonic_ns()}")
            args = [(ip, store, self.timeout_s) for ip in self.network.device_data_ips]
            self.cluster.call_each("connect_gloo", args, timeout_s=self.timeout_s + ANSWER_S, phase="connect")
        else:
            token = os.urandom(16)
            self.cluster.call(
                "connect", addresses, token, self.timeout_s, timeout_s=self.timeout_s + ANSWER_S, phase="connect"
            )

    def shape(self, bandwidth_mbps: float, shaper: str = SHAPERS[0], queue_kb: float | None = None) -> None:
        """Set all data links to a bandwidth (in the emulated device's time) while everything runs.

        queue_kb: another length of switches' queues than the session's.
        """
        begin = time.monotonic()
        rate_bps = bandwidth_mbps * 1e6 / self.time_scale
        self.network.shape(rate_bps, shaper, self.queue_kb if queue_kb is None else queue_kb)
        links = [(self.network.links_of(rank, self.all_gather),) for rank in range(self.devices)]
        self.cluster.call_each("set_links", links, timeout_s=self.timeout_s, phase="shape")
        pacings = [route.pacing for (of_rank,) in links for route in of_rank.routes.values()]
        self._holds_burst_credit = self.transport == "tcp" and all(isinstance(pacing, CreditHold) for pacing in pacings)
        self.reshape_s = time.monotonic() - begin

    @property
    def burst_credit_bytes(self) -> int:
        """What an idle link lets through at once and nobody pays for: nothing, unless a transport cannot hold back."""
        return 0 if self._holds_burst_credit else self.network.bucket_bytes

    def idle_bytes(self) -> int | None:
        """Bytes on the data network while nothing is asked of it; None if the backend has no counters."""
        time.sleep(SETTLE_S)
        before = self.network.carried_bytes()
        time.sleep(QUIET_S)
        after = self.network.carried_bytes()
        return None if before is None or after is None else sum(after.values()) - sum(before.values())

    def load(self, choice: Choice[Any], tokens: int, weights: list[Path], inputs: torch.Tensor) -> None:
        """Give every actor the model of these files (``load_model``) and the input, in place of what it had."""
        self.cluster.call("load", choice, tokens, weights, inputs, timeout_s=COMPUTE_TIMEOUT_S, phase="load")

    def prepare(
        self, key: str, name: str, speeds: Sequence[float], settings: dict[str, Any], codebooks: Path | None
    ) -> None:
        """Have every actor build its shard of a method; speeds: of the ranks, as for ``load_method``."""
        arguments = (key, name, speeds, settings, codebooks)
        self.cluster.call("prepare", *arguments, timeout_s=COMPUTE_TIMEOUT_S, phase=f"prepare {key}")

    def verify(self, key: str) -> list[tuple[Output, ForwardTiming]]:
        """One pass with real arithmetic through the links as they are now; by rank."""
        return self.cluster.call("verify", key, timeout_s=COMPUTE_TIMEOUT_S, phase=f"verify {key}")

    def measure(
        self, key: str, mode: str, devices: Sequence[Device], repeats: int, warmups: int, expected_s: float
    ) -> tuple[list[list[ForwardTiming]], float | None]:
        """Timed passes, [rank][repeat], and the bytes that a pass puts on the link, one way, that carries most.

        devices: what each rank plays. expected_s: what one pass should take on this machine's clock; the call fails
        after ten times that and a minute.
        """
        own = self._start_line_bytes()
        before = self.network.carried_bytes()
        limit = 60 + 10 * expected_s * (repeats + warmups)
        arguments = [(key, mode, device, self.time_scale, repeats, warmups) for device in devices]
        passes = self.cluster.call_each("measure", arguments, timeout_s=limit, phase=f"measure {key}")
        after = self.network.carried_bytes()
        if before is None or after is None or own is None:
            return passes, None
        return passes, max(((after[hop] - before[hop]) / (repeats + warmups) - own[hop] for hop in own), default=0.0)

    def _start_line_bytes(self) -> dict[Hop, float] | None:
        """Bytes that lining up for a pass puts on each link; they are the instrument's, not the method's."""
        before = self.network.carried_bytes()
        if before is None:
            return None
        self.cluster.call("time_operation", "nothing", 0, LINE_UPS, timeout_s=self.timeout_s, phase="line up")
        after = self.network.carried_bytes() or before
        return {hop: (after[hop] - before[hop]) / LINE_UPS for hop in before}

    def rank_times(
        self, operation: str, payload_bytes: int, repeats: int, peers: Sequence[Sequence[int]] | None = None
    ) -> list[list[tuple[float, float]]]:
        """When each rank began and ended one collective alone, [rank][repeat], in seconds of the machine's clock.

        peers: of each rank, for operation ``exchange``.
        """
        of_ranks = [()] * self.devices if peers is None else peers
        arguments = [(operation, payload_bytes, repeats, of) for of in of_ranks]
        return self.cluster.call_each("time_operation", arguments, timeout_s=COMPUTE_TIMEOUT_S, phase=operation)

    def retransmits(self) -> int:
        """Segments that the ranks' data connections have sent twice so far."""
        return sum(self.cluster.call("retransmits", timeout_s=self.timeout_s, phase="counters"))

    def congestion_control(self) -> list[str]:
        """The congestion controls in force on the ranks' data connections, each once; ``cubic`` where it may be set."""
        found = self.cluster.call("congestion_control", timeout_s=self.timeout_s, phase="counters")
        return sorted({name for names in found for name in names})

    def collective_s(self, operation: str, payload_bytes: int, repeats: int) -> list[float]:
        """Seconds of one collective alone, from the first rank's start to the last rank's end, by repeat."""
        calls = self.rank_times(operation, payload_bytes, repeats)
        return [max(end for _, end in ranks) - min(begin for begin, _ in ranks) for ranks in zip(*calls, strict=True)]
