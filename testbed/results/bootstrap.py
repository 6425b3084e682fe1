"""Confidence intervals of means by the bootstrap (Efron 1979)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000
LEVEL = 0.95


def bootstrap_interval(values: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """(low, high): the 95% interval of the mean of independent values [n], by the percentile bootstrap.

    Equal values and seed give equal intervals. Raises ValueError if there are no values.
    """
    numbers = np.asarray(values, dtype=float)
    if not numbers.size:
        raise ValueError("no values; an interval needs at least one")
    draw = np.random.default_rng(seed)
    # Only the number of draws of each distinct value matters, and correct or wrong answers have two distinct values.
    distinct, counts = np.unique(numbers, return_counts=True)
    means = draw.multinomial(numbers.size, counts / numbers.size, size=RESAMPLES) @ distinct / numbers.size
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
