"""What the kernel counts of a group's connections, over real TCP."""

from __future__ import annotations

import socket
import time

import pytest
import torch

from testbed.comm.frame import HEADER_BYTES
from testbed.comm.pacing import SEGMENT_HEADERS
from testbed.comm.tcp import TcpGroup
from testbed.comm.tcp_info import COUNTERS, TcpCounters, counters
from tests.conftest import run_ranks

SIZES = {1: 300_000, 2: 5_000}  # what rank 0 sends, by peer


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="no counters on this system")
def test_each_peer_has_what_was_sent_to_it() -> None:
    def main(group: TcpGroup) -> dict[int, TcpCounters | None]:
        group.barrier()
        before = group.counters()
        if group.rank == 0:
            for peer in (1, 2):
                group.send(torch.zeros(SIZES[peer], dtype=torch.uint8), peer)
        else:
            group.recv([SIZES[group.rank]], torch.uint8, 0)
        time.sleep(0.1)  # the last acknowledgements
        after = group.counters()
        group.barrier()
        found = {}
        for peer, now in after.items():
            then = before[peer]
            assert now is not None and then is not None
            found[peer] = TcpCounters(*(b - a for a, b in zip(then, now, strict=True)))
        return found

    ranks = run_ranks(3, main)
    for peer in (1, 2):
        sent = ranks[0][peer]
        assert sent is not None and sent.packets >= 1
        data = sent.wire_bytes - SEGMENT_HEADERS * sent.packets
        # The barrier before may still be on its way when a rank begins to count.
        assert data in (SIZES[peer] + HEADER_BYTES, SIZES[peer] + 2 * HEADER_BYTES)
        answered = ranks[peer][0]
        assert answered is not None and answered.wire_bytes <= HEADER_BYTES + SEGMENT_HEADERS * answered.packets
    assert all(each is not None and each.out_of_order == 0 for rank in ranks for each in rank.values())


def test_counters_are_of_all_connections_together(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        def __init__(self, *values: int):
            self.values = values

        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            return COUNTERS.pack(*self.values)

    monkeypatch.setattr(socket, "TCP_INFO", 11, raising=False)
    first, second = Connection(1, 10, 5000, 2), Connection(3, 20, 0, 4)
    found = counters([first, second])  # type: ignore[list-item]
    assert found == TcpCounters(5000 + 30 * SEGMENT_HEADERS, 30, 4, 6)


def test_a_kernel_that_tells_less_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            return bytes(104)

    assert counters([Connection()]) is None  # type: ignore[list-item]
    monkeypatch.delattr(socket, "TCP_INFO", raising=False)
    assert counters([Connection()]) is None  # type: ignore[list-item]
