"""Locating an error: the tokens, heads, channels or keys of a tap that are wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...spec.ops import Array
from .metrics import MARGIN, seen, sentinel_for

MOST_SPANS = 6


def localise(
    value: Array, right: Array, ways: Sequence[Array], dims: Sequence[str], E: int
) -> tuple[str, tuple[int, Array] | None]:
    """Find the narrowest part of a result that holds all the error -> (words, (axis, indices)), or ("", None)

    ways  results of correct implementations
    dims  the letters of the axes

    A slice along an axis is wrong if its error exceeds MARGIN times the largest error of the correct ways in it. On an
    axis of flattened heads, a slice is a head of `E` channels.
    """
    sentinel = sentinel_for(right)
    value, right, *ways = (seen(np.asarray(x, np.float64), sentinel) for x in (value, right, *ways))
    differences = [way - right for way in ways]
    best: tuple[float, str, tuple[int, Array] | None] = (1.0, "", None)
    for axis, letter in enumerate(dims):
        width = E if letter.endswith("*E") else 1
        count = right.shape[axis] // width
        if count == 1 or letter not in _SLICES:
            continue

        def by_slice(x: Array, axis: int = axis, width: int = width) -> Array:
            others = tuple(i for i in range(x.ndim) if i != axis)
            return np.asarray(np.sum(x**2, axis=others).reshape(-1, width).sum(axis=1))

        noise = np.max([by_slice(d) for d in differences] + [by_slice(right) * 2.0**-48], axis=0)
        bad = np.flatnonzero(by_slice(value - right) > MARGIN**2 * noise)
        share = len(bad) / count
        if 0 < share < best[0]:
            words = f"{_SLICES[letter]} {spans(bad, MOST_SPANS)} of {count}"
            if share > 0.5 and _SLICES[letter] in ("channel", "logit"):
                words = ""  # noise hides the other channels, so a list of these misleads
            indices = (bad[:, None] * width + np.arange(width)).ravel()
            best = (share, words, (axis, indices))
    return best[1], best[2]


_SLICES = {
    "T": "token",
    "S": "key",
    "H": "head",
    "K": "key-value head",
    "H*E": "head",
    "K*E": "key-value head",
    "D": "channel",
    "F": "channel",
    "V": "logit",
}


def runs(numbers: Sequence[int] | Array) -> list[tuple[int, int]]:
    """Return the (first, last) number of each run without a gap. The numbers ascend."""
    starts = [n for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n - 1]
    ends = [n for i, n in enumerate(numbers) if i == len(numbers) - 1 or numbers[i + 1] != n + 1]
    return list(zip(starts, ends, strict=True))


def spans(numbers: Sequence[int] | Array, most: int | None = None) -> str:
    """Write runs in words: 0, 1, 2, 5 -> "0-2, 5"

    most  the number of runs to write at most; None: all
    """
    parts = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs(numbers)]
    if most is not None and len(parts) > most:
        parts = [*parts[: most - 1], f"and {len(numbers)} in all"]
    return ", ".join(parts)
