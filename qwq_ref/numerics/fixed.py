"""The small operations of the core, with results that are identical on every machine.

NumPy's exp and sum differ in their last bits between machines. Here every product and sum is rounded to float32 in a
fixed order, so scalar C, AVX2 and AVX-512 give the same bits. Square roots and quotients are correctly rounded on every
machine. Only the bits of a NaN are not fixed.
"""

from __future__ import annotations

import math

import numpy as np

from ..spec.ops import Array

# The polynomial of e^r for |r| <= ln 2 / 2, within 2^-28, highest power first. The last two are exact, so exp(0) is 1.
EXP = tuple(
    float.fromhex(c) for c in ("0x1.6a4d6p-10", "0x1.12398ep-7", "0x1.5558bp-5", "0x1.555492p-3", "0x1.fffffcp-2")
)
EXP += (1.0, 1.0)
EXP_LOWEST = float.fromhex("-0x1.5d589ep+6")  # below it, e^x is below the smallest normal float32
EXP_HIGHEST = float.fromhex("0x1.62e42ep+6")  # above it, e^x is above the largest
LOG2E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(float.fromhex("0x1.62e4p-1"))  # 15 bits, so that n times it is exact
LN2_LOW = np.float32(float.fromhex("0x1.7f7d1cp-20"))

# The polynomial of 2^r for |r| <= 1/2, highest coefficient first.
POWER = np.array([0.00132646726, 0.0096715549, 0.0555073433, 0.240222409, 0.693147004, 1.0], np.float32)
LOWEST_POWER = np.float32(-126)


def exp(x: Array) -> Array:
    """x [...] -> [...]

    e^x = 2^n e^r, where n = round(x / ln 2), r is the rest, and e^r is a polynomial. Within 1.2 ulp of the truth. A
    subnormal result is 0.
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


def exp2(x: Array) -> Array:
    """x [...] -> [...]

    2^x for float32 x below 127.5, within 2.5 ulp of the truth: n = round(x) is added to the exponent bits of a
    polynomial in x - n. exp2(0) is 1. A subnormal result is 0.
    """
    held = np.maximum(x, LOWEST_POWER)
    n = np.rint(held)
    y = np.full_like(held, POWER[0])
    for coefficient in POWER[1:]:
        y = y * (held - n) + coefficient
    return np.where(x < LOWEST_POWER, np.float32(0), np.ldexp(y, n.astype(np.int32)))


def lane_sum(x: Array) -> Array:
    """x [..., n] -> [..., 1]

    The sum in 16 lanes. Lane j adds up x[j], x[j + 16], ... in order. Then lanes j and j + 8 are added, then j and
    j + 4, j + 2, j + 1. Zeros (+0) fill the last lanes up to a multiple of 16.
    """
    missing = -x.shape[-1] % 16 if x.shape[-1] else 16
    padded = np.concatenate([x, np.zeros((*x.shape[:-1], missing), x.dtype)], axis=-1)
    lanes = padded[..., :16]
    for i in range(16, padded.shape[-1], 16):
        lanes = lanes + padded[..., i : i + 16]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes


def rmsnorm(x: Array, w: Array, eps: float) -> Array:
    """x [T, D], w [D] -> [T, D]

    `spec.rmsnorm` with its sum in lanes. The weight is multiplied last.

    A row whose mean square float32 cannot hold is NaN. The spec and Hugging Face divide such a row by infinity. Their
    zeros would become logits that look like an answer.
    """
    with np.errstate(over="ignore"):
        root = np.sqrt(lane_sum(x * x) / np.float32(x.shape[-1]) + np.float32(eps))
    return x * np.where(np.isinf(root), np.float32(np.nan), np.float32(1) / root) * w


# pi / 2 in three parts. The first two have 26 bits, so their products with integers up to 2^27 are exact in float64.
HALF_PI = tuple(float.fromhex(part) for part in ("0x1.921fb5p+0", "0x1.110b46p-26", "0x1.1a62633145c07p-54"))


def rope_tables(inv_freq: Array, scaling: float, positions: Array) -> tuple[Array, Array]:
    """inv_freq [n], positions [T] -> cos [T, n], sin [T, n]

    One half of `spec.rope_tables` in float32. The angle is rounded to float32. Its cos and sin are computed in float64
    and rounded once, which gives the float32 nearest to the truth.
    """
    angles = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
    quarters = np.floor(angles * (2 / np.pi) + 0.5)
    r = ((angles - quarters * HALF_PI[0]) - quarters * HALF_PI[1]) - quarters * HALF_PI[2]
    square = r * r
    cos, sin = np.full_like(r, 1 / math.factorial(16)), np.full_like(r, -1 / math.factorial(15))
    for n in range(14, 0, -2):  # Taylor's series
        sign = (-1) ** (n // 2)
        cos = cos * square + sign / math.factorial(n)
        if n > 2:
            sin = sin * square - sign / math.factorial(n - 1)
    cos, sin = 1 + cos * square, r + r * square * sin
    turned = quarters % 4
    cos, sin = np.where(turned % 2 == 1, sin, cos), np.where(turned % 2 == 1, cos, sin)
    cos = np.where((turned == 1) | (turned == 2), -cos, cos).astype(np.float32)
    sin = np.where(turned >= 2, -sin, sin).astype(np.float32)
    return cos * np.float32(scaling), sin * np.float32(scaling)


def softmax(x: Array) -> Array:
    """x [T, n] -> [T, n]

    `spec.softmax` with this exp, and its sum in lanes.
    """
    e = exp(x - np.max(x, axis=-1, keepdims=True))
    normalised: Array = e / lane_sum(e)
    return normalised


def swiglu(gate: Array, up: Array, beta: float = 1.0) -> Array:
    """gate [T, F], up [T, F] -> [T, F]

    gate / (1 + e^(-beta gate)) * up. For beta gate below -88.7 the quotient is -0; the truth is above -3e-37.
    """
    with np.errstate(over="ignore"):  # e^... may be infinite: the quotient is 0
        return gate / (np.float32(1) + exp(-(np.float32(beta) * gate))) * up


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """x [n] -> index [k], value [k]

    The k largest in descending order; of equals, the lower index comes first. NaN is above all numbers, as for
    `np.argmax`.
    """
    ascending = np.argsort(x[::-1], kind="stable")  # NumPy sorts NaN last
    index = len(x) - 1 - ascending[::-1][:k]
    return index, x[index]


def uniform(seed: int, i: int) -> float:
    """seed, i -> u

    A number in [0, 1) for token i: 53 bits of the first word of Philox4x64-10 (Salmon et al. 2011) with key (seed, 0)
    and counter i + 1. It is the first draw of NumPy's `Generator(Philox(key=seed, counter=i))`, which adds 1 to the
    counter before it draws.
    """
    word = 2**64
    counter = [(i + 1) % word, (i + 1) // word, 0, 0]
    key = [seed, 0]
    for _ in range(10):
        p, q = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [q // word ^ counter[1] ^ key[0], q % word, p // word ^ counter[3] ^ key[1], p % word]
        key = [(key[0] + 0x9E3779B97F4A7C15) % word, (key[1] + 0xBB67AE8584CAA73B) % word]
    return (counter[0] >> 11) * 2.0**-53
