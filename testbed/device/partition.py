"""Whole items (rows, heads, layers) over devices of unequal speed."""

from __future__ import annotations

import heapq
from functools import cache


@cache
def shares_by_speed(total: int, speeds: tuple[float, ...]) -> tuple[int, ...]:
    """``total`` items over ranks such that the rank that takes longest, share / speed, takes as little as it can.

    Every rank has an item if there are enough; each further one goes to the rank that would be done with it first, as
    D'Hondt gives seats to parties. Equal speeds give ``testbed.comm.group.even_shares``.
    """
    least = int(total >= len(speeds))
    shares = [least] * len(speeds)
    done = [((least + 1) / speed, rank) for rank, speed in enumerate(speeds)]  # with one item more
    heapq.heapify(done)
    for _ in range(total - sum(shares)):
        rank = done[0][1]
        shares[rank] += 1
        heapq.heapreplace(done, ((shares[rank] + 1) / speeds[rank], rank))
    return tuple(shares)
