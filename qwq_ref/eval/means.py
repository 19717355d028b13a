"""Means of numbers that come in pieces, with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..spec.ops import Array


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    error: float


class Mean:
    """The mean of all numbers so far. The memory does not grow with them."""

    def __init__(self) -> None:
        self.count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values: Array) -> None:
        """values [n]: add them, as float64."""
        values = values.astype(float)
        self.count += len(values)
        self._sum += float(values.sum())
        self._squares += float((values * values).sum())

    @property
    def estimate(self) -> Estimate:
        """The mean and its standard error, that of independent numbers. Raises ValueError for less than two numbers.

        llama-perplexity computes errors in the same way: the variance of the numbers, over their count less one.
        """
        if self.count < 2:
            raise ValueError(f"a standard error needs two numbers, got {self.count}")
        mean = self._sum / self.count
        variance = max(0.0, self._squares / self.count - mean * mean)
        return Estimate(mean, math.sqrt(variance / (self.count - 1)))


def exponential(log: Estimate) -> Estimate:
    """Return e to an estimate, with the error that the slope of the exponential gives."""
    value = math.exp(log.value)
    return Estimate(value, value * log.error)


def root(square: Estimate) -> Estimate:
    """Return the square root of an estimate, with the error that the slope of the root gives."""
    value = math.sqrt(square.value)
    return Estimate(value, square.error / (2 * value) if value else 0.0)
