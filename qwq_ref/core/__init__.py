"""The C core: NumPy in, NumPy out. Each function has the name and the argument order of its twin in `spec.quant`.

A wrapper checks types, shapes and contiguity, and allocates the result; C checks sizes once more. The instruction set
is chosen from what the processor can run; QWQ_ISA or `isa` force one, which gives the same bits.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import QwqError

try:
    from ._core import ffi, lib
except ImportError:  # installed where there was no compiler
    ffi = lib = None

Array = NDArray[Any]
ISAS = ("scalar", "avx2", "avx512")  # in the order of csrc/qwq.h


class CoreError(QwqError):
    """The C core is not built here, or cannot do what it is asked for."""


def available() -> bool:
    """Whether the core was built."""
    return lib is not None


def isas() -> list[str]:
    """The instruction sets that this processor can run, the best last."""
    return [name for i, name in enumerate(ISAS) if _lib().qwq_isa_supported(i)]


def chosen_isa(isa: str | None = None) -> str:
    """The instruction set that runs: `isa`, else QWQ_ISA, else the best. Raises CoreError for one that cannot."""
    wanted = isa or os.environ.get("QWQ_ISA")
    have = isas()
    if not wanted:
        return have[-1]
    if wanted not in have:
        raise CoreError(None, "isa", f"{wanted[:40]} cannot run here; {', '.join(have)} can")
    return wanted


class Q4:
    """q4 weights in panels, as the kernels read them.

    packed  uint8, 4.25 bits a weight and what pads N to 32
    shape   (N, K): outputs, inputs
    """

    def __init__(self, packed: Array, shape: tuple[int, int]) -> None:
        self.packed = packed
        self.shape = shape


def pack_q4(code: Array, scale: Array) -> Q4:
    """code [n, k] in 0..15, scale [n, k / 64] float16 -> packed weights."""
    n, k = _shape("code", code, 2)
    group = _lib().QWQ_GROUP
    if k % group or not n or not k:
        raise CoreError(None, "code", f"must have a multiple of {group} columns, got {[n, k]}")
    codes = np.ascontiguousarray(code, np.uint8)
    scales = np.ascontiguousarray(scale, np.float16)
    if scales.shape != (n, k // group):
        raise CoreError(None, "scale", f"must have shape {[n, k // group]}, got {list(scales.shape)}")
    packed = np.empty(_lib().qwq_q4_bytes(n, k), np.uint8)
    _check(_lib().qwq_pack_q4(_u8(packed), _u8(codes), ffi.cast("uint16_t *", scales.ctypes.data), n, k))
    return Q4(packed, (n, k))


def quantise_q4(w: Array, isa: str | None = None, threads: int = 1) -> tuple[Array, Array]:
    """w [n, k] -> code [n, k], scale [n, k / 64]: `spec.quant.quantise_q4`, to the bit."""
    N, K = _shape("w", w, 2)
    w = np.ascontiguousarray(w, np.float32)
    code, scale = np.empty((N, K), np.uint8), np.empty((N, K // _lib().QWQ_GROUP), np.float16)
    half = ffi.cast("uint16_t *", scale.ctypes.data)
    _check(_lib().qwq_quantise_q4(_u8(code), half, _f32(w), N, K, ISAS.index(chosen_isa(isa)), threads))
    return code, scale


def quantise_activations(x: Array, isa: str | None = None) -> tuple[Array, Array]:
    """x [T, n] -> q int8 [T, n], scale [T, n / 64]: `spec.quant.quantise_activations`, to the bit."""
    T, K = _shape("x", x, 2)
    x = np.ascontiguousarray(x, np.float32)
    groups = K // _lib().QWQ_GROUP
    q, scale, sums = np.empty((T, K), np.int8), np.empty((T, groups), np.float32), np.empty((T, groups), np.int32)
    _check(
        _lib().qwq_quantise_activations(
            ffi.cast("int8_t *", q.ctypes.data),
            _f32(scale),
            ffi.cast("int32_t *", sums.ctypes.data),
            _f32(x),
            T,
            K,
            ISAS.index(chosen_isa(isa)),
        )
    )
    return q, scale


def matmul_q4(x: Array, w: Q4, isa: str | None = None, threads: int = 1) -> Array:
    """x [T, k], packed w [n, k] -> [T, n]: `spec.quant.matmul_q4`, to the bit, for any isa and number of threads."""
    T, K = _shape("x", x, 2)
    N, columns = w.shape
    if columns != K:
        raise CoreError(None, "x", f"has {K} columns, and the weight {columns}")
    x = np.ascontiguousarray(x, np.float32)
    y = np.empty((T, N), np.float32)
    scratch = np.empty(_lib().qwq_matmul_scratch(T, K), np.uint8)
    _check(
        _lib().qwq_matmul_q4(
            _f32(y),
            _u8(w.packed),
            _f32(x),
            ffi.cast("void *", scratch.ctypes.data),
            T,
            N,
            K,
            ISAS.index(chosen_isa(isa)),
            threads,
        )
    )
    return y


def _lib() -> Any:
    if lib is None:
        raise CoreError(None, "core", "is not built: install with a C compiler, or use the NumPy backend")
    return lib


def _shape(name: str, array: Array, rank: int) -> tuple[int, ...]:
    if np.ndim(array) != rank:
        raise CoreError(None, name, f"must have {rank} dimensions, got shape {list(np.shape(array))}")
    return tuple(array.shape)


def _check(code: int) -> None:
    if code:
        reasons = {lib.QWQ_EISA: "the instruction set cannot run here", lib.QWQ_ESIZE: "a size is impossible"}
        raise CoreError(None, None, reasons.get(code, f"failed with code {code}"))


def _f32(array: Array) -> Any:
    return ffi.cast("float *", array.ctypes.data)


def _u8(array: Array) -> Any:
    return ffi.cast("uint8_t *", array.ctypes.data)
