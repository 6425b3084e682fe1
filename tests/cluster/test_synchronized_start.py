"""The common start, on ranks over real TCP: rank 0 chooses the instant and the others check it."""

from __future__ import annotations

import time

import pytest
import torch

from testbed.cluster.synchronized_start import START_DELAY_S, start_together
from testbed.comm.tcp import TcpGroup
from testbed.errors import CommError
from tests.conftest import run_ranks


def test_all_ranks_start_together_and_never_early() -> None:
    def main(group: TcpGroup) -> float:
        begin = time.monotonic()
        start_together(group)
        assert time.monotonic() - begin >= START_DELAY_S
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
                start_together(group)
            assert error.value.ranks == (0,)

    run_ranks(2, main)
