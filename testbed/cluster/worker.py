"""The actor on each device: holds the model's shard, runs forward passes, times them itself.

Remote calls are never timed. The driver asks for N passes; the actor synchronizes with its peers over the data network,
times each pass and returns the figures.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from testbed.astra.codebooks import load_codebooks
from testbed.cluster.priority import realtime
from testbed.comm.connect import connect, listen
from testbed.comm.group import Group
from testbed.comm.routes import RankLinks
from testbed.comm.tcp import TcpGroup
from testbed.device.clock import DeviceClock
from testbed.device.spec import Device
from testbed.errors import CommError
from testbed.methods import load_method
from testbed.methods.base import Method
from testbed.models.weights import Choice, load_model
from testbed.network.sandbox import prctl
from testbed.output import Output

PR_SET_TIMERSLACK = 29
# Passes begin together this long after a barrier: the link is idle again and its bucket is full.
START_LINE_S = 5e-3


@dataclass
class ForwardTiming:
    """One rank's figures of one forward pass, in seconds of this machine's monotonic clock and in bytes."""

    begin_s: float
    end_s: float
    compute_s: float
    encode_s: float
    decode_s: float
    wire_s: float
    wait_s: float
    received_bytes: int
    macs: int
    moved_bytes: int
    overruns: int
    late_s: float


class DeviceWorker:
    """One emulated device. Plain Python: the cluster turns it into a Ray actor."""

    def __init__(self, rank: int, world: int, threads: int):
        self.rank, self.world = rank, world
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        prctl(PR_SET_TIMERSLACK, 1)  # nanoseconds: sleeps end when they should, not up to 50 us later
        self._group: Group | None = None
        self._loaded: dict[str, tuple[Method, Any, DeviceClock]] = {}

    def node_ip(self) -> str:
        """The address of the Ray node that this actor really runs on."""
        import ray.util

        return ray.util.get_node_ip_address()

    def listen(self, address: str) -> tuple[str, int]:
        """Listen on the data network; fails unless this process is on the host that owns ``address``."""
        if self._group is not None:
            self._group.close()
            self._group = None
        self._listener = listen(address)
        return self._listener.getsockname()

    def connect(self, addresses: list[tuple[str, int]], token: bytes, timeout_s: float) -> None:
        """Join the group over direct TCP. CommError names ranks that never come."""
        self._group = connect(self.rank, addresses, self._listener, token, timeout_s)

    def connect_gloo(self, interface_address: str, store: str, timeout_s: float) -> None:
        """Join the group over gloo instead, with a file store that all ranks share."""
        from testbed.comm.gloo import GlooGroup

        self._listener.close()
        self._group = GlooGroup(self.rank, self.world, interface_address, store, timeout_s)

    def set_links(self, links: RankLinks) -> None:
        """The data links now are like this."""
        if isinstance(self._group, TcpGroup):
            self._group.set_links(links)

    def load(self, choice: Choice[Any], tokens: int, weights: list[Path], inputs: torch.Tensor) -> None:
        """Load the model (weights mapped from files that all actors share) and keep the input."""
        self._model = load_model(choice, tokens, *weights)
        self._inputs = inputs
        self._loaded.clear()

    def prepare(
        self, key: str, name: str, speeds: Sequence[float], settings: dict[str, Any], codebooks: Path | None
    ) -> None:
        """Build a method's shard of the model; later calls name it by ``key``."""
        method = load_method(name, speeds, **settings)
        if codebooks is not None:
            method.attach(*load_codebooks(codebooks), cache=codebooks.parent)
        self._loaded[key] = method, method.shard(self._model, self.rank, self.world), DeviceClock()

    def verify(self, key: str) -> tuple[Output, ForwardTiming]:
        """One pass with real arithmetic, recorded for replay. Returns what this rank holds at the end."""
        method, shard, clock = self._loaded[key]
        clock.mode = "execute"
        self._start_line()
        return self._one_pass(method, shard, clock, record=True)

    def measure(
        self, key: str, mode: str, device: Device, time_scale: float, repeats: int, warmups: int
    ) -> list[ForwardTiming]:
        """``repeats`` timed passes after ``warmups`` that do not count."""
        method, shard, clock = self._loaded[key]
        clock.mode, clock.device, clock.time_scale = mode, device, time_scale
        passes = []
        with realtime() if mode == "replay" else contextlib.nullcontext():
            for _ in range(warmups + repeats):
                self._start_line()
                passes.append(self._one_pass(method, shard, clock)[1])
        return passes[warmups:]

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
            macs=clock.macs,
            moved_bytes=clock.moved_bytes,
            overruns=clock.overruns,
            late_s=clock.late_s,
        )

    def _start_line(self) -> None:
        """All ranks leave at one instant, which rank 0 sets: the emulated hosts share this machine's clock."""
        group = self._connected()
        group.barrier()
        if self.rank == 0:
            start = time.monotonic() + START_LINE_S
            for peer in range(1, self.world):
                group.send(torch.tensor([start], dtype=torch.float64), peer)
        else:
            start = group.recv([1], torch.float64, 0).item()
        ahead_s = start - time.monotonic()
        if not ahead_s <= 2 * START_LINE_S:
            raise CommError(f"rank 0 set a start {ahead_s:g} s ahead; expected {START_LINE_S:g} s at most", [0])
        time.sleep(max(0.0, ahead_s))

    def _connected(self) -> Group:
        if self._group is None:
            raise RuntimeError(f"rank {self.rank} is not connected")
        return self._group

    def time_operation(
        self, operation: str, payload_bytes: int, repeats: int, peers: Sequence[int] = ()
    ) -> list[tuple[float, float]]:
        """Time one operation alone: (begin, end) of each repeat. payload_bytes: what each rank contributes.

        one_way, both_ways: between ranks 0 and 1, 2 and 3, ... at once; a last rank without a partner only waits.
        incast_all: all others to rank 0, at once; incast_ordered: the same, each when rank 0 asks for it.
        exchange: with these peers both ways, all at once.
        """
        group = self._connected()
        local = torch.zeros(payload_bytes, dtype=torch.uint8)
        partner, others = self.rank ^ 1, range(1, self.world)
        from_peers = dict.fromkeys(peers, payload_bytes)
        run: dict[str, Callable[[], object]] = {
            "all_gather": lambda: group.all_gather(local, [payload_bytes] * self.world),
            "all_reduce": lambda: group.all_reduce(local.view(torch.float32)),
            "nothing": lambda: None,
            "one_way": lambda: (
                group.recv([payload_bytes], torch.uint8, partner) if self.rank % 2 else group.send(local, partner)
            ),
            "both_ways": lambda: group.sendrecv(local, partner, [payload_bytes], torch.uint8, partner),
            "incast_all": lambda: (
                group.exchange_async({0: local}, {}, senders=len(others))
                if self.rank
                else group.exchange_async({}, dict.fromkeys(others, payload_bytes))
            ).wait(),
            "incast_ordered": lambda: _answer(group, local) if self.rank else _ask(group, others, payload_bytes),
            "exchange": lambda: group.exchange_async(dict.fromkeys(peers, local), from_peers).wait(),
        }
        if operation in ("one_way", "both_ways") and partner >= self.world:
            operation = "nothing"
        times = []
        with realtime():
            for _ in range(repeats):
                self._start_line()
                begin = time.monotonic()
                run[operation]()
                times.append((begin, time.monotonic()))
        return times

    def retransmits(self) -> int:
        """Segments that this rank's data connections have sent twice; 0 on transports that do not tell."""
        return self._group.retransmits() if isinstance(self._group, TcpGroup) else 0

    def congestion_control(self) -> list[str]:
        """What decides how fast this rank's data connections send; empty on transports that do not tell."""
        return self._group.congestion_control() if isinstance(self._group, TcpGroup) else []


def _ask(group: Group, peers: Iterable[int], payload_bytes: int) -> None:
    """Receive from one peer after another, each when the one before is done."""
    for peer in peers:
        group.send(torch.zeros(1, dtype=torch.uint8), peer)
        group.recv([payload_bytes], torch.uint8, peer)


def _answer(group: Group, local: Tensor) -> None:
    """Send to rank 0 when it asks."""
    group.recv([1], torch.uint8, 0)
    group.send(local, 0)
