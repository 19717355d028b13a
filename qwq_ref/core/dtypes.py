"""Arrays as the core reads them: converted where this is exact or a rounding, and refused where it would be a guess.

Integers are no floats: 16 bits may be a number, or a bfloat16.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ._ffi import Array, CoreError
from .magnitude import FLOAT32_MAX, first_beyond

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def single(name: str, x: Any) -> Array:
    """Return floats as contiguous, aligned float32. Raises CoreError for an array that holds no floats."""
    array = np.asarray(x)
    if array.dtype != np.float32 and not _is_float(array.dtype):
        raise CoreError(None, name, f"must be floats, got {array.dtype.name}")
    return np.require(array, np.float32, ["C", "A"])


def weights(name: str, w: Any, wanted: np.dtype[Any] | None = None) -> Array:
    """Return the floats of a weight, contiguous, in float32, float16 or bfloat16. Wider floats are rounded once.

    w       floats, or bfloat16 as uint16 bits
    wanted  the dtype to round wider floats to; None: float32

    Raises CoreError for another dtype, and for a number beyond the range of the result.
    """
    array = np.asarray(w)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.uint16:
        array = np.ascontiguousarray(array).view(BFLOAT16)
    if array.dtype in (np.float32, np.float16, BFLOAT16):
        return np.ascontiguousarray(array)
    if not _is_float(array.dtype):
        known = "must be floats, or bfloat16 as uint16 bits"
        raise CoreError(None, name, f"{known}, got {array.dtype.name}")
    to_single = rounded(name, array, np.dtype(np.float32))
    return to_single if wanted is None else rounded(name, array, wanted)


def rounded(name: str, x: Any, dtype: np.dtype[Any]) -> Array:
    """Return floats in another type, rounded to nearest, contiguous.

    Raises CoreError for an array that holds no floats, and for a number that becomes infinite.
    """
    x = np.asarray(x)
    if not _is_float(x.dtype):
        raise CoreError(None, name, f"must be floats, got {x.dtype.name}")
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == BFLOAT16 and x.dtype.itemsize > 4:
            x = _to_odd(x)
        result: Array = np.ascontiguousarray(x.astype(dtype))
        overflow = np.isinf(result) & ~np.isinf(x) if first_beyond(result, FLOAT32_MAX) else np.False_
    if overflow.any():
        index = tuple(int(i) for i in np.unravel_index(int(overflow.argmax()), x.shape))
        raise CoreError(None, name, f"holds {float(x[index]):g} at {list(index)}, beyond the range of {dtype.name}")
    return result


def _to_odd(x: Array) -> Array:
    """Return wide floats as float32. An inexact one is cut, and its last bit is 1: a second rounding is right."""
    single = x.astype(np.float32)
    away = np.abs(single) > np.abs(x)
    bits = np.ascontiguousarray(single).view(np.uint32) - away.astype(np.uint32)
    inexact = (bits.view(np.float32) != x) & np.isfinite(x) & np.isfinite(single)
    odd: Array = np.where(inexact | (away & np.isfinite(single)), bits | 1, single.view(np.uint32)).view(np.float32)
    return odd


def integers(name: str, x: Any, dtype: Any, most: int | None = None) -> Array:
    """Return integers in another type, contiguous. Raises CoreError for another kind, and a number that does not fit.

    most  the largest number; None: that of the type
    """
    array, limits = np.asarray(x), np.iinfo(dtype)
    if array.dtype.kind not in "iu":
        raise CoreError(None, name, f"must be integers, got {array.dtype.name}")
    least, most = int(limits.min), int(limits.max) if most is None else most
    if array.size and (array.dtype != dtype or most < limits.max):
        low, high = int(array.min()), int(array.max())
        if low < least or high > most:
            raise CoreError(None, name, f"must be {least} to {most}, got {low if low < least else high}")
    return np.ascontiguousarray(array, dtype)


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype == BFLOAT16
