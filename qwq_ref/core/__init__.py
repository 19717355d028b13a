"""The C core: NumPy in, NumPy out. Each function has the name and the argument order of its twin in `spec.quant`.

A wrapper checks types, shapes and contiguity, and allocates the result; C checks sizes once more. The instruction set
is chosen from what the processor can run; QWQ_ISA or `isa` force one, which gives the same bits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Packed:
    """Weights in panels of 32 rows, as the kernels read them.

    form    "q4" or "q8"
    packed  uint8: 4.25 or 8.25 bits a weight, and what pads N to 32
    shape   (N, K): outputs, inputs
    """

    form: str
    packed: Array
    shape: tuple[int, int]


def pack_q4(code: Array, scale: Array) -> Packed:
    """code [n, k] in 0..15, scale [n, k / 64] float16 -> packed weights."""
    return _pack("q4", code, np.uint8, scale)


def pack_q8(q: Array, scale: Array) -> Packed:
    """q [n, k] int8, scale [n, k / 64] float16 -> packed weights."""
    return _pack("q8", q, np.int8, scale)


def quantise_q4(w: Array, isa: str | None = None, threads: int = 1) -> tuple[Array, Array]:
    """w [n, k] -> code [n, k], scale [n, k / 64]: `spec.quant.quantise_q4`, to the bit."""
    return _quantise("q4", w, np.uint8, isa, threads)


def quantise_q8(w: Array, isa: str | None = None, threads: int = 1) -> tuple[Array, Array]:
    """w [n, k] -> q [n, k], scale [n, k / 64]: `spec.quant.quantise_q8`, to the bit."""
    return _quantise("q8", w, np.int8, isa, threads)


def quantise_activations(x: Array, isa: str | None = None) -> tuple[Array, Array]:
    """x [T, n] -> q int8 [T, n], scale [T, n / 64]: `spec.quant.quantise_activations`, to the bit."""
    T, K = _shape("x", x, 2)
    x = np.ascontiguousarray(x, np.float32)
    groups = K // _lib().QWQ_GROUP
    q, scale, sums = np.empty((T, K), np.int8), np.empty((T, groups), np.float32), np.empty((T, groups), np.int32)
    _check(_lib().qwq_quantise_activations(_at(q), _at(scale), _at(sums), _at(x), T, K, ISAS.index(chosen_isa(isa))))
    return q, scale


def matmul(x: Array, w: Packed, isa: str | None = None, threads: int = 1) -> Array:
    """x [T, k], packed w [n, k] -> [T, n]: `spec.quant.matmul_q4` or `_q8`, to the bit, for any isa and threads."""
    T, K = _shape("x", x, 2)
    N, columns = w.shape
    if columns != K:
        raise CoreError(None, "x", f"has {K} columns, and the weight {columns}")
    x = np.ascontiguousarray(x, np.float32)
    y = np.empty((T, N), np.float32)
    scratch = np.empty(_lib().qwq_matmul_scratch(T, K), np.uint8)
    function = getattr(_lib(), f"qwq_matmul_{w.form}")
    _check(function(_at(y), _at(w.packed), _at(x), _at(scratch), T, N, K, ISAS.index(chosen_isa(isa)), threads))
    return y


def _pack(form: str, values: Array, dtype: Any, scale: Array) -> Packed:
    N, K = _shape("weights", values, 2)
    group = _lib().QWQ_GROUP
    if K % group or not N or not K:
        raise CoreError(None, "weights", f"must have a multiple of {group} columns, got {[N, K]}")
    values, scale = np.ascontiguousarray(values, dtype), np.ascontiguousarray(scale, np.float16)
    if scale.shape != (N, K // group):
        raise CoreError(None, "scale", f"must have shape {[N, K // group]}, got {list(scale.shape)}")
    packed = np.empty(getattr(_lib(), f"qwq_{form}_bytes")(N, K), np.uint8)
    _check(getattr(_lib(), f"qwq_pack_{form}")(_at(packed), _at(values), _at(scale), N, K))
    return Packed(form, packed, (N, K))


def _quantise(form: str, w: Array, dtype: Any, isa: str | None, threads: int) -> tuple[Array, Array]:
    N, K = _shape("w", w, 2)
    w = np.ascontiguousarray(w, np.float32)
    values, scale = np.empty((N, K), dtype), np.empty((N, K // _lib().QWQ_GROUP), np.float16)
    function = getattr(_lib(), f"qwq_quantise_{form}")
    _check(function(_at(values), _at(scale), _at(w), N, K, ISAS.index(chosen_isa(isa)), threads))
    return values, scale


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
        reasons = {
            lib.QWQ_EISA: "the instruction set cannot run here",
            lib.QWQ_ESIZE: "a size is impossible",
            lib.QWQ_EALIGN: "a buffer is not aligned",
        }
        raise CoreError(None, None, reasons.get(code, f"failed with code {code}"))


_C_TYPES = {"f4": "float *", "f2": "uint16_t *", "i1": "int8_t *", "i4": "int32_t *", "u1": "uint8_t *"}


def _at(array: Array) -> Any:
    """The address of an array, as a pointer of its type."""
    return ffi.cast(_C_TYPES[array.dtype.str[1:]], array.ctypes.data)
