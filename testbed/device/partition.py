"""Partition of whole items (rows, heads, layers) over devices of different speeds."""

from __future__ import annotations

import heapq
from functools import cache


@cache
def shares_by_speed(total: int, speeds: tuple[float, ...]) -> tuple[int, ...]:
    """The number of items for each rank that minimizes the longest time, share / speed, over all ranks.

    Every rank gets one item if there are enough. Each further item goes to the rank that would finish it first (the
    D'Hondt method of apportionment). Equal speeds give ``testbed.comm.group.even_shares``.
    """
    least = int(total >= len(speeds))
    shares = [least] * len(speeds)
    done = [((least + 1) / speed, rank) for rank, speed in enumerate(speeds)]  # time of each rank with one more item
    heapq.heapify(done)
    for _ in range(total - sum(shares)):
        rank = done[0][1]
        shares[rank] += 1
        heapq.heapreplace(done, ((shares[rank] + 1) / speeds[rank], rank))
    return tuple(shares)
