"""What every packed weight format means: the integers and scales behind the bytes that the engine reads.

An integer dot product is exact in any order, and the sums over groups are taken in one order, each product and sum
rounded to float32: so these functions give the engine's results to the bit, whatever instructions it uses.
"""

from __future__ import annotations

import numpy as np

from .ops import Array

GROUP = 64
# Sixteen levels for the values of one group, divided by its scale: the best for normally distributed weights.
CODEBOOK = np.array([-55, -43, -34, -26, -19, -13, -7, -2, 4, 10, 16, 22, 29, 38, 48, 63], np.int8)


def quantise_activations(x: Array) -> tuple[Array, Array]:
    """x [T, n] -> q [T, n], scale [T, m]

    int8, with one scale for each token and group of 64: the largest magnitude becomes 127. Never -128. A group without
    any magnitude of 2^-100 is zero: 127 over less than that is no float32.
    """
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.max(np.abs(groups), axis=-1, keepdims=True)
    present = largest >= np.float32(2.0**-100)
    inverse = np.where(present, np.float32(127) / np.where(present, largest, np.float32(1)), np.float32(0))
    q = np.rint(groups * inverse).astype(np.int8)
    scale = largest[..., 0] * np.float32(1 / 127)
    return q.reshape(x.shape), scale


def dequantise_q4(code: Array, scale: Array) -> Array:
    """code [n, k], scale [n, m] -> [n, k]

    w = scale * CODEBOOK[code], in float32; scales are float16, one for each group of 64.
    """
    values = CODEBOOK[code].reshape(len(code), -1, GROUP).astype(np.float32)
    return (values * scale.astype(np.float32)[..., None]).reshape(code.shape)


def matmul_q4(x: Array, code: Array, scale: Array) -> Array:
    """x [T, k], code [n, k], scale [n, m] -> [T, n]

    y = x w^T from int8 activations: for each group in order, the exact integer sum times the product of both scales.
    """
    q, x_scale = quantise_activations(x)
    levels = CODEBOOK[code].astype(np.int64)
    y = np.zeros((len(x), len(code)), np.float32)
    for g in range(x_scale.shape[1]):
        span = slice(g * GROUP, (g + 1) * GROUP)
        exact = q[:, span].astype(np.int64) @ levels[:, span].T
        both = x_scale[:, g, None] * scale[:, g].astype(np.float32)
        y = y + exact.astype(np.float32) * both
    return y
