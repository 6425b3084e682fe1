"""The common start of a pass, on real ranks: an instant that rank 0 sets and the others check."""

from __future__ import annotations

import time

import pytest
import torch

from testbed.cluster.worker import START_LINE_S, DeviceWorker
from testbed.comm.tcp import TcpGroup
from testbed.errors import CommError
from tests.conftest import run_ranks


def worker(group: TcpGroup) -> DeviceWorker:
    made = DeviceWorker.__new__(DeviceWorker)  # its constructor changes the settings of the whole process
    made.rank, made.world, made._group = group.rank, group.world, group
    return made


def test_all_ranks_leave_together_and_never_early() -> None:
    def main(group: TcpGroup) -> float:
        begin = time.monotonic()
        worker(group)._start_line()
        assert time.monotonic() - begin >= START_LINE_S
        return time.monotonic()

    times = run_ranks(3, main)
    assert max(times) - min(times) < 0.5


@pytest.mark.parametrize("start", [float("nan"), float("inf"), 1e300, 4e18])
def test_a_start_that_never_comes_is_an_error_that_names_rank_0(start: float) -> None:
    def main(group: TcpGroup) -> None:
        if group.rank == 0:
            group.barrier()
            group.send(torch.tensor([start], dtype=torch.float64), 1)
        else:
            with pytest.raises(CommError, match="rank 0 set a start .* s ahead; expected 0.005 s at most") as error:
                worker(group)._start_line()
            assert error.value.ranks == (0,)

    run_ranks(2, main)
