"""What the core computes, to the bit, where NumPy's own functions leave bits open.

NumPy's exp and sum give other last bits on another machine. Here every product and sum is rounded to float32 in an
order that is written down, so that scalar C, AVX2 and AVX-512 can all do the same. Square roots and quotients are
exactly rounded everywhere. Only the bits of a NaN stay open.
"""

from __future__ import annotations

import numpy as np

from .ops import Array

# e^r for |r| <= ln 2 / 2, within 2^-28: the highest power first. The two last are exact, so exp(0) is 1.
EXP = tuple(
    float.fromhex(c) for c in ("0x1.6a4d6p-10", "0x1.12398ep-7", "0x1.5558bp-5", "0x1.555492p-3", "0x1.fffffcp-2")
)
EXP += (1.0, 1.0)
EXP_LOWEST = float.fromhex("-0x1.5d589ep+6")  # below it, e^x is less than the smallest normal float32
EXP_HIGHEST = float.fromhex("0x1.62e42ep+6")  # above it, more than the largest
LOG2E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(float.fromhex("0x1.62e4p-1"))  # 15 bits, so that n times it is exact
LN2_LOW = np.float32(float.fromhex("0x1.7f7d1cp-20"))


def exp(x: Array) -> Array:
    """x [...] -> [...]

    e^x = 2^n e^r with n = round(x / ln 2) and r what remains, and a polynomial for e^r. Within 1.2 ulp of the truth;
    what would be subnormal is 0.
    """
    held = np.clip(np.where(np.isnan(x), np.float32(0), x), np.float32(EXP_LOWEST), np.float32(EXP_HIGHEST))
    n = np.rint(held * LOG2E)
    r = (held - n * LN2_HIGH) - n * LN2_LOW
    y = np.full_like(r, EXP[0])
    for coefficient in EXP[1:]:
        y = y * r + np.float32(coefficient)
    y = np.ldexp(y, n.astype(np.int32))
    y = np.where(x < np.float32(EXP_LOWEST), np.float32(0), y)
    y = np.where(x > np.float32(EXP_HIGHEST), np.float32(np.inf), y)
    return np.where(np.isnan(x), x, y)


def lane_sum(x: Array) -> Array:
    """x [..., n] -> [..., 1]

    The sum in 16 lanes: lane j adds up x[j], x[j + 16], ... in order, then lanes j and j + 8 are added, then j and
    j + 4, j + 2, j + 1. What is missing to a multiple of 16 counts as +0.
    """
    missing = -x.shape[-1] % 16 if x.shape[-1] else 16
    padded = np.concatenate([x, np.zeros((*x.shape[:-1], missing), x.dtype)], axis=-1)
    lanes = padded[..., :16]
    for i in range(16, padded.shape[-1], 16):
        lanes = lanes + padded[..., i : i + 16]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes
