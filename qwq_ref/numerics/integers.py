"""Integers that share a scale, and the sizes that attention in integers is built on."""

from __future__ import annotations

import numpy as np

from ..spec.ops import Array

CHUNK = 1024  # tokens whose scores share a maximum
LANES = 16
SMALLEST, LARGEST = np.float32(2.0**-100), np.float32(2.0**56)


def rounded(x: Array, axes: tuple[int, ...], most: int) -> tuple[Array, Array]:
    """x [..., n] -> code [..., n], scale

    The integers of numbers that share a scale along some axes: the largest magnitude becomes `most`. If all magnitudes
    are below 2^-100, all codes are 0. Magnitudes above 2^56 are cut, so that no score overflows.
    """
    largest = np.minimum(np.max(np.abs(x), axis=axes, keepdims=True, initial=0), LARGEST)
    present = largest >= SMALLEST
    inverse = np.where(present, np.float32(most) / np.where(present, largest, np.float32(1)), np.float32(0))
    codes = np.rint(np.clip(x * inverse, -np.float32(most), np.float32(most))).astype(np.int64)
    return codes, largest * (np.float32(1) / np.float32(most))
