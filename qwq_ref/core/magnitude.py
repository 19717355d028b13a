"""Whether floats are finite, and within the range of a format: at the speed of memory."""

from __future__ import annotations

import numpy as np

from ..errors import CheckpointError
from ..files import StrPath
from ._ffi import Array

FLOAT32_MAX = float(np.finfo(np.float32).max)


def within(x: Array, limit: float) -> bool:
    """x of floats, of at most 8 bytes -> whether all magnitudes are at most `limit`. NaN is not, and infinity neither.

    limit  2 or more

    A weight is nearly always below 2, and the highest bit of its exponent is then 0. One look for that bit is forty
    times as fast as `np.isfinite` of bfloat16. As integers, the bits of floats are in the order of magnitudes, infinity
    and NaN last. So the maxima of the bits, with a sign and without, give the largest magnitude.
    """
    size = x.itemsize
    bits = np.ascontiguousarray(x).reshape(-1).view(f"u{size}")
    if not int(np.bitwise_or.reduce(bits)) >> (8 * size - 2) & 1:
        return True
    positive, negative = int(bits.view(f"i{size}").max()), int(bits.max()) - (1 << (8 * size - 1))
    largest = np.array(max(positive, negative), f"u{size}").view(x.dtype)
    return bool(float(largest) <= limit)


def first_beyond(x: Array, limit: float) -> tuple[list[int], str] | None:
    """x [...], limit -> the index of the first number that is not `within`, and its name; None if all are.

    Names are "NaN", "infinity", and numbers such as "-1e+30".
    """
    if within(x, limit):
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        beyond = ~(np.abs(x.astype(np.float32)) <= limit)
    index = np.unravel_index(int(beyond.argmax()), x.shape)
    value = float(x[index])
    name = "NaN" if value != value else "infinity" if abs(value) == np.inf else f"{value:g}"
    return [int(i) for i in index], name


def check_finite(x: Array, file: StrPath | None, name: str) -> None:
    """Raise CheckpointError, with the place, if a tensor of a file holds NaN or infinity."""
    found = first_beyond(x, FLOAT32_MAX)
    if found is not None:
        raise CheckpointError(file, name, f"holds {found[1]} at {found[0]}")
