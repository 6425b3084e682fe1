"""Operations that calibration and fidelity time: each runs on all ranks and moves the bytes that it names."""

from __future__ import annotations

import pytest

from testbed.cluster.microbenchmarks import time_operation
from testbed.comm.tcp import TcpGroup
from tests.conftest import run_ranks

SIZE, REPEATS = 400, 2
PEERS = [[1, 2], [0], [0]]
START_BYTES = 8  # the instant that rank 0 sends before each repeat


@pytest.mark.parametrize(
    ("operation", "received_bytes"),
    [
        ("all_gather", [2 * SIZE] * 3),
        ("one_way", [0, SIZE, 0]),
        ("both_ways", [SIZE, SIZE, 0]),
        ("incast_all", [2 * SIZE, 0, 0]),
        ("incast_ordered", [2 * SIZE, 1, 1]),
        ("exchange", [2 * SIZE, SIZE, SIZE]),
        ("nothing", [0, 0, 0]),
    ],
)
def test_each_rank_receives_what_the_operation_names(operation: str, received_bytes: list[int]) -> None:
    def main(group: TcpGroup) -> tuple[int, int]:
        times = time_operation(group, operation, SIZE, REPEATS, PEERS[group.rank])
        assert all(begin <= end for begin, end in times)
        return len(times), group.traffic.received_bytes

    starts = [0, START_BYTES, START_BYTES]
    expected = [(REPEATS, REPEATS * (size + start)) for size, start in zip(received_bytes, starts, strict=True)]
    assert run_ranks(3, main) == expected
