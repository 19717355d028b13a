"""Confidence intervals of a proportion, and of the difference of two proportions over the same trials."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the bounds of a proportion of which n trials showed `successes`: (0, 1) if n is 0. Wilson 1927."""
    if n == 0:
        return 0.0, 1.0
    share, weight = successes / n, z * z / n
    middle = (share + weight / 2) / (1 + weight)
    spread = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    return max(0.0, middle - spread), min(1.0, middle + spread)


def bootstrap_interval(values: Sequence[float], draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Return the bounds of a mean at 95 %: percentiles of the means of `draws` samples with replacement. Efron 1979.

    The same values and seed give the same bounds. (0, 1) for no values.
    """
    if not values:
        return 0.0, 1.0
    rng, array = np.random.default_rng(seed), np.asarray(values, np.float64)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(draws)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def paired_interval(lost: int, gained: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the bounds of a difference of two proportions over the same n trials: (lost - gained) / n.

    lost    trials that only the first of the two got right
    gained  trials that only the second got right

    This is Tango's score interval (Statistics in Medicine 17, 1998): all differences that a score test does not
    reject. The variance is that of the likeliest discordant proportions with that difference. The interval holds its
    level for few discordant pairs, and for none. It is (-1, 1) if n is 0.
    """
    if n == 0:
        return -1.0, 1.0

    def deviations(difference: float) -> float:
        """The standard deviations from this difference up to the trials. It falls as the difference grows."""
        b = (2 * n - lost + gained) * difference - lost - gained
        c = -gained * difference * (1 - difference)
        second_only = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * second_only + difference * (1 - difference))
        distance = lost - gained - n * difference
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    def crossing(low: float, high: float, level: float) -> float:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if deviations(middle) > level else (low, middle)
        return (low + high) / 2

    observed = (lost - gained) / n
    return crossing(-1.0, observed, z), crossing(observed, 1.0, -z)
