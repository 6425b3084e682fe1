"""How sure a mean is."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000
LEVEL = 0.95


def bootstrap_interval(values: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the mean of independent values [n], by the percentile bootstrap (Efron 1979).

    The same for the same values. Raises ValueError for none.
    """
    numbers = np.asarray(values, dtype=float)
    if not numbers.size:
        raise ValueError("no values; an interval needs one at least")
    draw = np.random.default_rng(seed)
    # How often each distinct value is drawn is all that counts: right and wrong answers are two, not ten thousand.
    distinct, counts = np.unique(numbers, return_counts=True)
    means = draw.multinomial(numbers.size, counts / numbers.size, size=RESAMPLES) @ distinct / numbers.size
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
