"""The actor on each device: it holds its shard of the model, runs forward passes and times them itself.

No remote call is timed. The driver asks for a pass. The actors start it together over the data network, time it, and
return the figures.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from testbed.astra.codebooks import load_codebooks
from testbed.cluster.microbenchmarks import time_operation
from testbed.cluster.synchronized_start import start_together
from testbed.comm.connect import connect, listen
from testbed.comm.routes import RankLinks
from testbed.comm.tcp import TcpGroup
from testbed.comm.tcp_info import TcpCounters
from testbed.device.clock import DeviceClock
from testbed.device.priority import realtime
from testbed.device.spec import Device
from testbed.methods import load_method
from testbed.methods.base import CodebookMethod, Method
from testbed.models.weights import Choice, load_model
from testbed.network.sandbox import prctl
from testbed.output import Output
from testbed.work import Kernel, count_kernels

PR_SET_TIMERSLACK = 29


@dataclass
class ForwardTiming:
    """One rank's figures of one forward pass, in seconds of this machine's monotonic clock and in bytes.

    kernels: how often each kernel ran. late_s: how much later than due its busy periods ended. made_up_s: time between
    segments that the clock made up for. exchange_late_s: how much later than links and hosts of the emulated devices
    would have delivered them brief messages came, for which the rank waited.
    """

    begin_s: float
    end_s: float
    compute_s: float
    encode_s: float
    decode_s: float
    wire_s: float
    wait_s: float
    received_bytes: int
    kernels: Counter[Kernel]
    overruns: int
    late_s: float
    made_up_s: float
    exchange_late_s: float


class DeviceWorker:
    """One emulated device. A plain class, which the cluster turns into a Ray actor."""

    def __init__(self, rank: int, world: int, threads: int):
        self.rank, self.world = rank, world
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        prctl(PR_SET_TIMERSLACK, 1)  # nanoseconds; by default, sleeps end up to 50 us late
        self._group: TcpGroup | None = None
        self._loaded: dict[str, tuple[Method, Any, DeviceClock]] = {}

    def node_ip(self) -> str:
        """The address of the Ray node on which this actor runs."""
        import ray.util

        return ray.util.get_node_ip_address()

    def listen(self, address: str) -> tuple[str, int]:
        """Listen on the data network. Fails unless this process runs on the host that owns ``address``."""
        if self._group is not None:
            self._group.close()
            self._group = None
        self._listener = listen(address)
        return self._listener.getsockname()

    def connect(self, addresses: list[tuple[str, int]], token: bytes, timeout_s: float) -> None:
        """Join the group over direct TCP. CommError names the ranks that do not join in time."""
        self._group = connect(self.rank, addresses, self._listener, token, timeout_s)

    def set_links(self, links: RankLinks, time_scale: float) -> None:
        """Send as these links require from now on. time_scale: how much slower they are than the emulated ones."""
        self._connected().set_links(links, time_scale)

    def load(self, choice: Choice[Any], tokens: int, weights: list[Path], inputs: torch.Tensor) -> None:
        """Load the model and keep the input. Weights are mapped from files, so all actors share their memory."""
        self._model = load_model(choice, tokens, *weights)
        self._inputs = inputs
        self._loaded.clear()

    def prepare(
        self, key: str, name: str, speeds: Sequence[float], settings: dict[str, Any], codebooks: Path | None
    ) -> None:
        """Build this rank's shard of a method. Later calls refer to it by ``key``."""
        method = load_method(name, speeds, **settings)
        if isinstance(method, CodebookMethod) and codebooks is not None:
            method.attach(*load_codebooks(codebooks), cache=codebooks.parent)
        self._loaded[key] = method, method.shard(self._model, self.rank, self.world), DeviceClock()

    def verify(self, key: str) -> tuple[Output, ForwardTiming]:
        """One pass with real arithmetic, recorded for replay. Returns this rank's output and timing."""
        method, shard, clock = self._loaded[key]
        clock.mode = "execute"
        start_together(self._connected())
        return self._one_pass(method, shard, clock, record=True)

    def measure(self, key: str, mode: str, device: Device, time_scale: float, computing_s: float) -> ForwardTiming:
        """The timing of one pass. computing_s: how long peers may compute before they send."""
        method, shard, clock = self._loaded[key]
        clock.mode, clock.device, clock.time_scale = mode, device, time_scale
        message_s = (lambda _: 0.0) if mode == "execute" else device.message_s
        with realtime() if mode == "replay" else contextlib.nullcontext():
            start_together(self._connected())
            with self._connected().hosts(message_s, computing_s):
                return self._one_pass(method, shard, clock)[1]

    def _one_pass(
        self, method: Method, shard: Any, clock: DeviceClock, record: bool = False
    ) -> tuple[Output, ForwardTiming]:
        group = self._connected()
        forward = partial(method.forward, self._inputs, shard, group, clock)
        group.traffic.reset()
        clock.restart(group.traffic)
        begin = time.monotonic()
        output = clock.record(forward) if record else forward()
        end = time.monotonic()
        clock.finish()
        times, traffic = clock.seconds, group.traffic
        return output, ForwardTiming(
            begin_s=begin,
            end_s=end,
            compute_s=times["compute"],
            encode_s=times["encode"],
            decode_s=times["decode"],
            wire_s=traffic.wire_s,
            wait_s=traffic.wait_s,
            received_bytes=traffic.received_bytes,
            kernels=count_kernels(clock.works) if record else Counter(),
            overruns=clock.overruns,
            late_s=clock.late_s,
            made_up_s=clock.made_up_s,
            exchange_late_s=traffic.late_s,
        )

    def _connected(self) -> TcpGroup:
        if self._group is None:
            raise RuntimeError(f"rank {self.rank} is not connected")
        return self._group

    def time_operation(
        self, operation: str, payload_bytes: int, repeats: int, peers: Sequence[int] = ()
    ) -> list[tuple[float, float]]:
        """(begin, end) of each repeat of one communication operation: ``testbed.cluster.microbenchmarks``."""
        return time_operation(self._connected(), operation, payload_bytes, repeats, peers)

    def counters(self) -> dict[int, TcpCounters | None]:
        """For each peer, what has gone to it and come from it so far; None where the system does not count."""
        return self._connected().counters()

    def congestion_control(self) -> list[str]:
        """The TCP congestion controls of this rank's data connections; empty where the system has no name."""
        return self._connected().congestion_control()
