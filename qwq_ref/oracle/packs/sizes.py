"""The sizes in which a pack keeps a tap: the whole tap, its last token, a few statistics, or a sketch.

Each size is a function of the whole tap. A candidate's tensor is reduced by the same function before it is compared,
and tolerances are measured on reduced results, too.
"""

from __future__ import annotations

import functools

import numpy as np

from ...spec.ops import Array

SIZES = ("full", "last", "stats", "sketch")
SKETCH = 64


def reduce(tap: Array, letters: tuple[str, ...], size: str) -> Array:
    """Reduce a tap to a size.

    full    the tap
    last    [.., 1, ..]: the last token
    stats   [T, 4]: the mean, root mean square, smallest and largest value of each token
    sketch  [T, 64]: the values of each token, added up with random signs in 64 bins (`sketch_plan`). The squared length
            of a difference of sketches estimates that of the difference of values, to 18 % for one token

    Scores of hidden keys, -inf, count as 0 in statistics and sketches.
    """
    tokens = letters.index("T")
    if size == "full":
        return tap
    if size == "last":
        return np.take(tap, [-1], axis=tokens)
    rows = np.moveaxis(tap, tokens, 0).reshape(tap.shape[tokens], -1).astype(np.float64)
    rows = np.where(np.isneginf(rows), 0, rows)
    if size == "stats":
        return np.stack(
            [rows.mean(axis=1), np.sqrt(np.mean(rows**2, axis=1)), rows.min(axis=1), rows.max(axis=1)], axis=1
        )
    bins, signs = sketch_plan(rows.shape[1])
    order, starts = _sorted_bins(rows.shape[1])
    sums = np.zeros((len(rows), SKETCH))
    present = np.unique(bins)
    sums[:, present] = np.add.reduceat((rows * signs)[:, order], starts, axis=1)
    return sums


@functools.lru_cache(maxsize=32)
def sketch_plan(n: int) -> tuple[Array, Array]:
    """Return bins [n] in [0, 64) and signs [n] of +1 and -1, from the SplitMix64 hash of each index.

    z = (i + 1) 0x9E3779B97F4A7C15; z = (z ^ z >> 30) 0xBF58476D1CE4E5B9; z = (z ^ z >> 27) 0x94D049BB133111EB;
    z ^= z >> 31, modulo 2^64. The bin is z mod 64; the sign is - where bit 63 is set.
    """
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z % np.uint64(SKETCH)).astype(np.int64), np.where(z >> np.uint64(63), -1.0, 1.0)


@functools.lru_cache(maxsize=32)
def _sorted_bins(n: int) -> tuple[Array, Array]:
    bins, _ = sketch_plan(n)
    order = np.argsort(bins, kind="stable")
    return order, np.unique(bins[order], return_index=True)[1]
