"""95% intervals of means over examples, and over seeds (docs/decisions/0016-intervals.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
FEW = 16  # values of which resamples say too little
LEVEL = 0.95
ANGLES = 20_001  # steps of the integral in ``t_quantile``; its error is then below 1e-4
MOST_DEGREES = 10_000.0  # of freedom; more make no difference


def mean_interval(values: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """(low, high): the 95% interval of the mean of independent values [n], by the bootstrap-t (Efron 1981, Hall 1988).

    Each resample's mean is divided by its own standard error, so that few values and skewed values widen the interval.
    Student's t takes its place for fewer than FEW values, and if too many resamples have no standard error. Equal
    values give low = high; one value gives NaN, and so does a mean that is not finite. Equal values and seed give equal
    intervals. Raises ValueError if there are no values.
    """
    numbers = np.asarray(values, dtype=float)
    count, mean = numbers.size, numbers.mean() if numbers.size else 0.0
    if not count:
        raise ValueError("no values; an interval needs at least one")
    if count == 1 or not math.isfinite(mean):
        return math.nan, math.nan
    # Only the number of draws of each distinct value matters, and correct or wrong answers have two distinct values.
    distinct, counts = np.unique(numbers - mean, return_counts=True)
    if distinct.size == 1:
        return float(mean), float(mean)
    error = math.sqrt(float(counts @ distinct**2) / count / (count - 1))
    high = t_quantile(count - 1)
    if count < FEW:
        return float(mean - high * error), float(mean + high * error)
    share = np.random.default_rng(seed).multinomial(count, counts / count, size=RESAMPLES) / count
    means = share @ distinct
    errors = np.sqrt(np.maximum(share @ distinct**2 - means**2, 0.0) / (count - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.quantile(means / errors, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = ends if np.isfinite(ends).all() else (-high, high)
    return float(mean - high * error), float(mean - low * error)


def seeds_interval(means: Sequence[float], errors: Sequence[float], examples: float) -> tuple[float, float]:
    """(low, high): the 95% interval of the mean over two seeds or more, each evaluated on the same examples.

    means, errors: of each seed, the mean over the examples and its standard error. The unit is the seed, then the
    example. Each has its own interval by Student's t, and their squared halves add up (Zou and Donner 2008), so that
    few seeds widen the interval. The variance over examples is not divided by the number of seeds, because the seeds
    share the examples.
    """
    mean, count = float(np.mean(means)), len(means)
    of_seeds = t_quantile(count - 1) * float(np.std(means, ddof=1)) / math.sqrt(count)
    of_examples = t_quantile(max(1.0, examples - 1)) * math.sqrt(float(np.mean(np.square(errors))))
    half = math.hypot(of_seeds, of_examples)
    return mean - half, mean + half


@cache
def t_quantile(degrees: float) -> float:
    """The number that Student's t exceeds with probability (1 - LEVEL) / 2. degrees: of freedom, 1 or more.

    With t = sqrt(degrees) * tan(angle), the density of the angle is proportional to cos(angle) ^ (degrees - 1).
    """
    degrees = min(degrees, MOST_DEGREES)
    angles = np.linspace(0.0, math.pi / 2, ANGLES)
    density = np.cos(angles) ** (degrees - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(degrees) * math.tan(float(np.interp(LEVEL * area[-1], area, angles)))
