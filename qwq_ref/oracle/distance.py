"""The distance between two tensors: a relative error, the cosine, and the largest differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..spec.ops import Array


@dataclass(frozen=True)
class Distance:
    """The distance of a tensor `a` from the right one, `b`.

    error    sqrt(sum (a - b)^2 / sum b^2): 0.01 is one per cent; its square is the NMSE
    cosine   the cosine of the angle between the two
    max_abs  the largest difference
    at       the index of the largest difference
    p99      the 99th percentile of the differences
    """

    error: float
    cosine: float
    max_abs: float
    at: tuple[int, ...]
    p99: float

    @property
    def nmse(self) -> float:
        return self.error**2


def error(theirs: Array, right: Array) -> float:
    """Return the relative error sqrt(sum (theirs - right)^2 / sum right^2), computed in float64.

    Infinities at the same places count as equal. A NaN, or an infinity in one of the two, is an infinite error.
    """
    a, b = np.ravel(theirs), np.ravel(right)
    difference = energy = 0.0
    for x, y in _chunks(a, b):
        d = x - y
        total = float(d @ d)
        if total != total:  # NaN, or an infinity on either side
            finite = np.isfinite(y)
            if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
                return np.inf
            y = y[finite]
            d = x[finite] - y
            total = float(d @ d)
        difference += total if total == total else np.inf
        energy += float(y @ y)
    return _ratio(difference, energy)


def _chunks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Yield pieces of flat arrays in float64; a piece stays in the processor's cache."""
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, arrays[0].size, _CHUNK):
            yield tuple(np.asarray(x[start : start + _CHUNK], np.float64) for x in arrays)


_CHUNK = 1 << 13  # so small that a BLAS starts no threads


def _ratio(difference: float, energy: float) -> float:
    if difference == 0:
        return 0.0
    return float(np.sqrt(difference / energy)) if energy > 0 else np.inf


def distance(theirs: Array, right: Array) -> Distance:
    """Return all measures. A NaN, or an infinity in one of the two, is an infinite difference."""
    a, b = np.ravel(theirs), np.ravel(right)
    gaps = np.empty(a.size, np.float32)
    largest, at = 0.0, 0
    xy = xx = yy = 0.0
    done = 0
    for x, y in _chunks(a, b):
        gap = np.abs(x - y)
        if not np.isfinite(gap).all():
            gap[(x == y) | (np.isnan(x) & np.isnan(y))] = 0  # also equal infinities
            gap[np.isnan(gap)] = np.inf
            both = np.isfinite(x) & np.isfinite(y)
            x, y = x[both], y[both]
        i = int(np.argmax(gap))
        if gap[i] > largest:
            largest, at = float(gap[i]), done + i
        gaps[done : done + len(gap)] = gap
        done += len(gap)
        xy, xx, yy = xy + float(x @ y), xx + float(x @ x), yy + float(y @ y)
    norms = float(np.sqrt(xx * yy))
    cosine = xy / norms if norms > 0 else float(xx == yy)
    rank = max(0, int(np.ceil(0.99 * gaps.size)) - 1)
    p99 = float(np.partition(gaps, rank)[rank]) if gaps.size else 0.0
    index = np.unravel_index(at, np.shape(right)) if gaps.size else ()
    return Distance(error(theirs, right), cosine, largest, tuple(int(i) for i in index), p99)
