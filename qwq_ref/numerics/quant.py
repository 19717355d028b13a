"""What every packed weight format means: the integers and scales behind the bytes that the engine reads.

A weight [n, k] is a matrix of small integers, its levels; a scale for each group of columns; for some formats also an
offset for each group: w = scale * level + offset. In q4 a level is a number of the codebook; in u4, u5 and u6 it is
what a code of 4 to 6 bits exceeds its zero by; in q8 it is the code.

An integer dot product is exact in any order, and the sums over groups are taken in one order, each product and sum
rounded to float32: so these functions give the engine's results to the bit, whatever instructions it uses.
"""

from __future__ import annotations

import numpy as np

from ..spec.ops import Array
from .fixed import lane_sum

GROUP = 64
# Sixteen levels for the values of one group, divided by its scale: the best for normally distributed weights.
CODEBOOK = np.array([-55, -43, -34, -26, -19, -13, -7, -2, 4, 10, 16, 22, 29, 38, 48, 63], np.int8)
# What the scale of a group of activations can be, beside its token's: eight steps to the octave. So few that their
# products with a weight's scale can be made once for many tokens.
RATIOS = (2.0 ** (-np.arange(64) / 8)).astype(np.float32)
STARTS = (0.75, 0.85, 0.95, 1.05)  # what the largest weight may be taken for, beside the largest level
SMALLEST, LARGEST = 2.0**-24, 65504.0  # what a float16 scale can be


def quantise_activations(x: Array) -> tuple[Array, Array, Array]:
    """x [T, n] -> q [T, n], ratio [T, m], scale [T, 1]

    int8, with one scale for each token and group of 64: that of the token, at which its largest magnitude is 127, times
    one of `RATIOS`, the smallest at which the group's are within 127. Never -128. A token without any magnitude of
    2^-100 is zero: 127 over less than that is no float32. One with a number that is not finite has the scale NaN.
    """
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.max(np.abs(groups), axis=-1)
    top = np.max(largest, axis=-1, keepdims=True)
    present = (top >= np.float32(2.0**-100)) & np.isfinite(top)
    held = np.where(present, top, np.float32(1))
    part = np.where(present, largest / held, np.float32(1))
    ratio = RATIOS[np.searchsorted(-RATIOS, -part, side="right") - 1]
    inverse = np.where(present, np.float32(127) / (held * ratio), np.float32(0))[..., None]
    q = np.rint(np.where(present[..., None], groups, np.float32(0)) * inverse).astype(np.int8)
    scale = np.where(np.isfinite(top), top * np.float32(1 / 127), np.float32(np.nan))
    return q.reshape(x.shape), ratio, scale


def quantise_q4(w: Array) -> tuple[Array, Array]:
    """w [n, k] -> code [n, k], scale [n, m]

    The scale and codes of each group of 64 that come nearest to its weights, by search: from each of `STARTS`, two
    rounds of taking the nearest levels and then the scale that fits them best (least squares). The start with the
    smallest squared error wins, the first of equals. A scale has the sign of the group's largest weight, which so comes
    to the codebook's longer side; it is float16, and the last codes are those for it as rounded. A group beyond
    float16's range in either direction keeps its nearest scale.

    In float32; sums as `lane_sum` takes them.
    """
    groups = w.astype(np.float32).reshape(len(w), -1, GROUP)
    at = np.argmax(np.abs(groups), axis=-1)[..., None]
    largest = np.take_along_axis(groups, at, axis=-1)
    sign = np.where(largest < 0, np.float32(-1), np.float32(1))
    v, top = groups * sign, np.abs(largest)
    best_error = np.full(top.shape, np.inf, np.float32)
    best_scale, best_code = np.zeros_like(top), np.zeros(v.shape, np.uint8)
    for start in STARTS:
        scale = np.maximum(top * np.float32(start / 63), np.float32(SMALLEST))
        for _ in range(2):
            levels = CODEBOOK[_nearest(v, scale)].astype(np.float32)
            scale = lane_sum(v * levels) / lane_sum(levels * levels)
            scale = np.clip(scale, np.float32(SMALLEST), np.float32(LARGEST))
        scale = np.where(top > 0, scale.astype(np.float16), np.float16(0)).astype(np.float32)
        code = _nearest(v, scale)
        rest = v - scale * CODEBOOK[code].astype(np.float32)
        with np.errstate(over="ignore"):  # beyond float16's range, every start is as bad
            error = lane_sum(rest * rest)
        better = (error < best_error) | (start == STARTS[0])
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_code = np.where(better, code, best_code)
    return best_code.reshape(w.shape), (best_scale * sign)[..., 0].astype(np.float16)


def _nearest(v: Array, scale: Array) -> Array:
    """The code of the level nearest to v / scale, the lower of two; for a scale of 0, that nearest to 0."""
    middles = (CODEBOOK[1:].astype(np.float32) + CODEBOOK[:-1].astype(np.float32)) / 2
    inverse = np.where(scale > 0, np.float32(1) / np.where(scale > 0, scale, np.float32(1)), np.float32(0))
    return np.searchsorted(middles, v * inverse).astype(np.uint8)


def quantise_q8(w: Array) -> tuple[Array, Array]:
    """w [n, k] -> q [n, k], scale [n, m]

    int8 in [-127, 127]; the float16 scale of each group of 64 makes its largest magnitude 127. A group whose scale
    float16 rounds to 0 is zero; beyond its range, magnitudes are cut.
    """
    groups = w.astype(np.float32).reshape(len(w), -1, GROUP)
    largest = np.max(np.abs(groups), axis=-1, keepdims=True)
    scale = np.minimum(largest * np.float32(1 / 127), np.float32(LARGEST)).astype(np.float16).astype(np.float32)
    inverse = np.where(scale > 0, np.float32(1) / np.where(scale > 0, scale, np.float32(1)), np.float32(0))
    q = np.clip(np.rint(groups * inverse), -127, 127).astype(np.int8)
    return q.reshape(w.shape), scale[..., 0].astype(np.float16)


def levels(code: Array, zero_point: Array) -> Array:
    """code [n, k], zero_point [n, m] -> [n, k]

    The levels of u4, u5 and u6: each code less the zero point of its group.
    """
    groups = code.astype(np.int32).reshape(len(code), zero_point.shape[1], -1)
    return (groups - zero_point.astype(np.int32)[..., None]).reshape(code.shape)


def super_scale(d: Array, sub_scale: Array) -> Array:
    """d [n, b], sub_scale [n, m] -> [n, m]

    Scales of two levels, as GGUF's K formats have them: a float16 for 256 columns, times a small integer for each
    group. Exact: 11 bits times 8 are a float32.
    """
    return np.repeat(d.astype(np.float32), sub_scale.shape[1] // d.shape[1], axis=1) * sub_scale.astype(np.float32)


def dequantise(levels: Array, scale: Array, offset: Array | None = None) -> Array:
    """levels [n, k], scale [n, m], offset [n, m] -> [n, k]

    w = scale * level + offset, in float32.
    """
    groups = levels.reshape(len(levels), scale.shape[1], -1).astype(np.float32)
    w = groups * scale.astype(np.float32)[..., None]
    if offset is not None:
        w = w + offset.astype(np.float32)[..., None]
    return w.reshape(levels.shape)


def matmul_integers(x: Array, levels: Array, scale: Array, offset: Array | None = None) -> Array:
    """x [T, k], levels [n, k], scale [n, m], offset [n, m] -> [T, n]

    y = x w^T from int8 activations: for each group in order, the exact integer sum times the product of the weight's
    scale and the ratio of the activations'; then the offset times the sum of the group's x; in the end the token's
    scale. A group of 128 columns is taken as two of 64, which is what activations share a ratio over.
    """
    q, ratio, x_scale = quantise_activations(x)
    columns = levels.shape[1] // scale.shape[1]
    y = np.zeros((len(x), len(levels)), np.float32)
    for k in range(0, levels.shape[1], min(columns, GROUP)):
        span = slice(k, k + min(columns, GROUP))
        exact = q[:, span].astype(np.int64) @ levels[:, span].astype(np.int64).T
        group, of_x = k // columns, ratio[:, k // GROUP, None]
        y = y + exact.astype(np.float32) * (of_x * scale[:, group].astype(np.float32))
        if offset is not None:
            sums = q[:, span].sum(axis=1, dtype=np.int64)[:, None].astype(np.float32)
            y = y + offset[:, group].astype(np.float32) * (of_x * sums)
    return y * x_scale


def matmul_floats(x: Array, w: Array) -> Array:
    """x [T, k], w [n, k] -> [T, n]

    y = x w^T for bf16, fp16 and fp32, in float32: the products of each group of 64 columns are summed in order, and
    then the groups: so the error grows with their number, not with that of columns.
    """
    y = np.zeros((len(x), len(w)), np.float32)
    for start in range(0, w.shape[1], GROUP):
        group = np.zeros_like(y)
        for k in range(start, start + GROUP):
            group = group + x[:, k, None] * w[:, k].astype(np.float32)
        y = y + group
    return y
