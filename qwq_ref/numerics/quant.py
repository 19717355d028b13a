"""The meaning of every packed weight format: the integers and scales behind the bytes that the core reads.

A weight is w = scale * level + offset. Each number of a matrix has a level, which is a small integer. Each group of
columns has a scale, and in some formats an offset. In q4 a level is a number of the codebook. In u4, u5, u6 and u8 it
is a code of 4 to 8 bits minus the zero point of its group. In q8 it is the code.

An integer dot product is exact in any order. The sums over groups are taken in one order, and each product and sum is
rounded to float32. So these functions give the bits of the core for every instruction set.
"""

from __future__ import annotations

import numpy as np

from ..spec.ops import Array
from .fixed import lane_sum

GROUP = 64
# Sixteen levels for the weights of a group, divided by its scale: the best for normally distributed weights.
CODEBOOK = np.array([-55, -43, -34, -26, -19, -13, -7, -2, 4, 10, 16, 22, 29, 38, 48, 63], np.int8)
# The scale of a group of activations over the scale of its token: eight steps to the octave. They are so few that their
# products with a weight's scale can be computed once for many tokens.
RATIOS = (2.0 ** (-np.arange(64) / 8)).astype(np.float32)
STARTS = (0.75, 0.85, 0.95, 1.05)  # candidates for the largest weight, over the largest level
SMALLEST, LARGEST = 2.0**-24, 65504.0  # the range of a float16 scale


def quantise_activations(x: Array) -> tuple[Array, Array, Array]:
    """x [T, n] -> q [T, n], ratio [T, m], scale [T, 1]

    int8 in [-127, 127]. Each token and group of 64 has the scale `scale` times `ratio`. The scale of a token makes its
    largest magnitude 127. The ratio of a group is the smallest of `RATIOS` that keeps the group within 127.

    A token whose magnitudes are all below 2^-100 is zero, because 127 over such a number can overflow float32. A token
    with a number that is not finite has the scale NaN.
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

    The scale and the codes of each group of 64 that come nearest to its weights, by search. From each of `STARTS`, two
    rounds take the nearest levels, then the scale that fits them best (least squares). The start with the smallest
    squared error wins, the first of equals.

    A scale has the sign of the group's largest weight, which therefore falls on the longer side of the codebook. It is
    rounded to float16, and the final codes are those for the rounded scale. A group beyond float16's range keeps the
    nearest scale. A group that the smallest scale would enlarge becomes zeros, where they are nearer: no level is 0.
    The search is in float32, with sums as in `lane_sum`.
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
        with np.errstate(over="ignore"):  # beyond float16's range, all starts have the same error
            error = lane_sum(rest * rest)
        better = (error < best_error) | (start == STARTS[0])
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_code = np.where(better, code, best_code)
    with np.errstate(over="ignore"):
        zero = (best_scale == np.float32(SMALLEST)) & (lane_sum(v * v) < best_error)
    nothing = np.zeros(1, np.float32)
    code = np.where(zero, _nearest(nothing, nothing), best_code)
    return code.reshape(w.shape), np.where(zero, np.float32(0), best_scale * sign)[..., 0].astype(np.float16)


def _nearest(v: Array, scale: Array) -> Array:
    """Return the code of the level nearest to v / scale, the lower of two; for a scale of 0, of that nearest to 0."""
    middles = (CODEBOOK[1:].astype(np.float32) + CODEBOOK[:-1].astype(np.float32)) / 2
    inverse = np.where(scale > 0, np.float32(1) / np.where(scale > 0, scale, np.float32(1)), np.float32(0))
    return np.searchsorted(middles, v * inverse).astype(np.uint8)


def quantise_q8(w: Array) -> tuple[Array, Array]:
    """w [n, k] -> q [n, k], scale [n, m]

    int8 in [-127, 127]. The float16 scale of each group of 64 makes its largest magnitude 127. It is at least the
    smallest float16, which rounds magnitudes up to half of it to 0. A group of such magnitudes alone has the scale 0.
    Magnitudes beyond the range of float16 scales are cut.
    """
    groups = w.astype(np.float32).reshape(len(w), -1, GROUP)
    largest = np.max(np.abs(groups), axis=-1, keepdims=True)
    scale = np.clip(largest * np.float32(1 / 127), np.float32(SMALLEST), np.float32(LARGEST))
    scale = np.where(largest > np.float32(SMALLEST / 2), scale, np.float32(0)).astype(np.float16).astype(np.float32)
    inverse = np.where(scale > 0, np.float32(1) / np.where(scale > 0, scale, np.float32(1)), np.float32(0))
    q = np.clip(np.rint(groups * inverse), -127, 127).astype(np.int8)
    return q.reshape(w.shape), scale[..., 0].astype(np.float16)


def levels(code: Array, zero_point: Array) -> Array:
    """code [n, k], zero_point [n, m] -> [n, k]

    The levels of u4, u5, u6 and u8: each code minus the zero point of its group.
    """
    groups = code.astype(np.int32).reshape(len(code), zero_point.shape[1], -1)
    return (groups - zero_point.astype(np.int32)[..., None]).reshape(code.shape)


def super_scale(d: Array, sub_scale: Array) -> Array:
    """d [n, b], sub_scale [n, m] -> [n, m]

    The scales of super-blocks, as in GGUF's K formats: a float16 `d` for 256 columns times a small integer for each
    group. The product of 11 bits and 8 bits is exact in float32.
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

    y = x w^T from int8 activations. For each group in order, it adds the exact integer sum times the product of the
    weight's scale and the activations' ratio. It then adds the offset times the sum of the group's x. At the end it
    multiplies by the token's scale. A group of 128 columns counts as two of 64, which share a ratio of activations.
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

    y = x w^T for bf16, fp16 and fp32, in float32. The products of each group of 64 columns are summed in order, then
    the groups. So the error grows with the number of groups, not of columns.
    """
    y = np.zeros((len(x), len(w)), np.float32)
    for start in range(0, w.shape[1], GROUP):
        group = np.zeros_like(y)
        for k in range(start, start + GROUP):
            group = group + x[:, k, None] * w[:, k].astype(np.float32)
        y = y + group
    return y
