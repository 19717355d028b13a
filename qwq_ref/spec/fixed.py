"""What the core computes where NumPy's own functions leave bits open: a library's exp may round as it likes.

Products and sums in float32, one by one and in one order, are the same everywhere. So these are too.
"""

from __future__ import annotations

import numpy as np

from .ops import Array

# 2^r for |r| <= 1/2, of degree 5: the highest coefficient first.
POWER = np.array([0.00132646726, 0.0096715549, 0.0555073433, 0.240222409, 0.693147004, 1.0], np.float32)
LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # the high part times n is exact
LEAST_POWER, LEAST_EXP = np.float32(-126), np.float32(-87)  # below, what float32 holds is subnormal: 0 here


def exp2(x: Array) -> Array:
    """x [...] -> [...]

    2^x for float32 x below 127.5, within 2.5 units in the last place: n = round(x) and a polynomial in x - n.
    exp2(0) is 1.
    """
    within = np.maximum(x, LEAST_POWER)
    n = np.rint(within)
    return np.where(x < LEAST_POWER, np.float32(0), power(n, within - n))


def exp(x: Array) -> Array:
    """x [...] -> [...]

    e^x for float32 x up to 88, within 2.5 units in the last place: n = round(x / ln 2), and the same polynomial in
    (x - n ln 2) / ln 2. exp(0) is 1.
    """
    within = np.maximum(x, LEAST_EXP)
    n = np.rint(within * LOG2_E)
    rest = (within - n * LN2_HIGH) - n * LN2_LOW
    return np.where(x < LEAST_EXP, np.float32(0), power(n, rest * LOG2_E))


def power(n: Array, r: Array) -> Array:
    """n [...], r [...] -> [...]

    2^(n + r), for whole n and |r| <= 1/2: n is added to the exponent's bits of a polynomial in r.
    """
    y = np.full_like(r, POWER[0])
    for coefficient in POWER[1:]:
        y = y * r + coefficient
    bits: Array = y.view(np.int32) + (n.astype(np.int32) << 23)
    return bits.view(np.float32)
