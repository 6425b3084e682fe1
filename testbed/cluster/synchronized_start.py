"""A common start of all ranks, at an instant on the clock of the machine that hosts all emulated devices."""

from __future__ import annotations

import time

import torch

from testbed.comm.group import Group
from testbed.errors import CommError

# The start lies this long after the barrier. By then the links are idle and their token buckets are full.
START_DELAY_S = 5e-3


def start_together(group: Group) -> None:
    """Return on all ranks at the instant that rank 0 chooses.

    CommError if that instant is farther in the future than rank 0 may set it, so no rank waits for it forever.
    """
    group.barrier()
    if group.rank == 0:
        start = time.monotonic() + START_DELAY_S
        for peer in range(1, group.world):
            group.send(torch.tensor([start], dtype=torch.float64), peer)
    else:
        start = group.recv([1], torch.float64, 0).item()
    ahead_s = start - time.monotonic()
    if not ahead_s <= 2 * START_DELAY_S:  # written so that NaN fails
        raise CommError(f"rank 0 set a start {ahead_s:g} s ahead; expected {START_DELAY_S:g} s at most", [0])
    time.sleep(max(0.0, ahead_s))
