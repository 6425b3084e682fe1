"""The soak test's verdict: what grows on is a leak, what comes and goes or comes once is none."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.benchmarks.soak import Counters, report

FLAT = Counters(15, 1, 13, 0, 1, 1, 9, 330)


def cycles(**values: list[int]) -> list[Counters]:
    """Counters of as many cycles as there are values."""
    (length,) = {len(each) for each in values.values()}
    return [
        dataclasses.replace(FLAT, **{name: each[cycle] for name, each in values.items()}) for cycle in range(length)
    ]


@pytest.mark.parametrize(
    ("name", "values", "code"),
    [
        ("descriptors", [15, 14, 14, 15], 0),  # comes and goes
        ("threads", [12, 13, 13, 13], 0),  # a pool's, made once
        ("threads", [12, 12, 13, 14], 1),
        ("temporary_files", [9, 9, 9, 10], 1),
        ("memory_mib", [330, 335, 340, 345], 0),
        ("memory_mib", [330, 340, 350, 360], 1),
        ("closed_by_peer", [1, 2, 4, 6], 0),  # Ray's, two a cluster
        ("closed_by_peer", [1, 2, 5, 8], 1),
    ],
)
def test_what_counts_as_flat(name: str, values: list[int], code: int) -> None:
    assert report(cycles(**{name: values})) == code


def test_one_cycle_says_nothing_yet() -> None:
    assert report([FLAT]) == 0
