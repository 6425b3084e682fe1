"""Partition of whole items over devices of different speeds."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from testbed.comm.group import even_shares
from testbed.device.partition import shares_by_speed

speeds = st.lists(st.sampled_from([0.1, 0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=4).map(tuple)


@given(st.integers(0, 9), speeds)
def test_no_other_shares_finish_earlier(total: int, speeds: tuple[float, ...]) -> None:
    shares, world = shares_by_speed(total, speeds), len(speeds)
    least = int(total >= world)
    assert sum(shares) == total and min(shares) >= least

    def done(candidate: tuple[int, ...]) -> float:
        return max(share / speed for share, speed in zip(candidate, speeds, strict=True))

    every = itertools.product(range(least, total + 1), repeat=world)
    assert done(shares) == min(done(candidate) for candidate in every if sum(candidate) == total)


@given(st.integers(0, 5000), st.integers(1, 9), st.sampled_from([0.3, 1.0, 7.0]))
def test_equal_speeds_make_even_shares(total: int, world: int, speed: float) -> None:
    assert list(shares_by_speed(total, (speed,) * world)) == even_shares(total, world)


def test_shares_are_in_proportion_where_whole_items_allow() -> None:
    assert shares_by_speed(12, (1.0, 1.0, 0.5, 0.5)) == (4, 4, 2, 2)
    assert shares_by_speed(7000, (3.0, 2.0, 1.0, 1.0)) == (3000, 2000, 1000, 1000)
