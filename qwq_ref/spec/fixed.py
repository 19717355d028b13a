"""What the core computes where NumPy's own functions leave bits open: a library's exp may round as it likes.

Products and sums in float32, one by one and in one order, are the same everywhere. So these are too.
"""

from __future__ import annotations

import numpy as np

from .ops import Array

# exp(r) for |r| <= ln(2)/2, of degree 5: the highest coefficient first.
EXP = np.array([0.0083125010, 0.0418903306, 0.166671157, 0.499992311, 1.0, 1.0], np.float32)
EXP_LEAST = np.float32(-87)  # below, exp gives 0: what float32 holds there is subnormal
LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # the high part times n is exact


def exp(x: Array) -> Array:
    """x [...] -> [...]

    e^x for float32 x up to 88, within 2.5 units in the last place. With n = round(x / ln 2), a polynomial in
    r = x - n ln 2, then n is added to the exponent's bits. exp(0) is 1.
    """
    within = np.maximum(x, EXP_LEAST)
    n = np.rint(within * LOG2_E)
    r = (within - n * LN2_HIGH) - n * LN2_LOW
    y = np.full_like(r, EXP[0])
    for coefficient in EXP[1:]:
        y = y * r + coefficient
    bits = y.view(np.int32) + (n.astype(np.int32) << 23)
    return np.where(x < EXP_LEAST, np.float32(0), bits.view(np.float32))
