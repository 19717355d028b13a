"""Memory for the kernels: aligned arrays, and the scratch that a thread keeps between calls."""

from __future__ import annotations

import threading

import numpy as np

from ._ffi import Array
from .formats import ALIGN

_kept = threading.local()


def aligned(size: int) -> Array:
    """Return uint8 [size] that begins at a multiple of 64 bytes. NumPy asks for huge pages where they help."""
    whole = np.empty(size + ALIGN, np.uint8)
    start = -whole.ctypes.data % ALIGN
    return whole[start : start + size]


def scratch(size: int) -> Array:
    """Return at least `size` bytes for one call.

    A thread keeps its scratch for its next call: fresh pages cost as much as a product.
    """
    if not hasattr(_kept, "scratch") or len(_kept.scratch) < size:
        _kept.scratch = aligned(size)
    kept: Array = _kept.scratch
    return kept
