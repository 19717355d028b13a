"""The C core: NumPy in, NumPy out. Each function has the name and the argument order of its twin in `numerics.quant`.

A wrapper checks types, shapes and contiguity, and allocates the result; C checks sizes once more. The instruction set
is chosen from what the processor can run; QWQ_ISA or `isa` force one, which gives the same bits.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import QwqError

try:
    from ._core import ffi as ffi
    from ._core import lib as lib
except ImportError:  # installed where there was no compiler
    ffi = lib = None

Array = NDArray[Any]
ALIGN = 64  # bytes that weights, caches and scratch begin at multiples of
PANEL = 32  # rows of a weight that are packed together
ISAS = ("scalar", "avx2", "avx512")  # in the order of csrc/qwq.h
# Bits of csrc/qwq.h from the lowest, by their names in /proc/cpuinfo; the last two are registers that an operating
# system may keep or not.
FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni", "ymm", "zmm")


class CoreError(QwqError):
    """The C core is not built here, or cannot do what it is asked for."""


class Stopped(Exception):  # noqa: N818 - it is no error: somebody asked for it
    """A long call returned early, because its `Stop` was set."""


class Stop:
    """A flag that long calls look at, for another thread to set."""

    def __init__(self) -> None:
        self.flag = ffi.new("int32_t *")

    def set(self) -> None:
        self.flag[0] = 1

    def clear(self) -> None:
        self.flag[0] = 0


def available() -> bool:
    """Whether the core was built."""
    return lib is not None


def isas() -> list[str]:
    """The instruction sets that this processor can run, the best last."""
    return [name for i, name in enumerate(ISAS) if _lib().qwq_isa_supported(i)]


def features() -> list[str]:
    """Of FEATURES, what this processor has and its operating system keeps: what instruction sets are chosen by."""
    return _features(_lib().qwq_cpu_features())


def needs(isa: str) -> list[str]:
    """Of FEATURES, what one of ISAS cannot run without."""
    return _features(_lib().qwq_isa_needs(ISAS.index(isa)))


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
class Format:
    """How the numbers of a packed weight are stored.

    codes   "q4", "u4", "u5", "u6", "q8", "bf16", "fp16" or "fp32"
    group   columns that share a scale: 64 for q4; 16, 32, 64 or 128 for the others; 0 for floats
    scales  "plain", "zero", "offset", "super" or "super_min": see csrc/qwq.h
    zero    what every code exceeds its level by, for "plain" and "super"
    """

    codes: str
    group: int = 64
    scales: str = "plain"
    zero: int = 0


FORMATS = {
    "q4": Format("q4"),
    "q8": Format("q8"),
    "bf16": Format("bf16", 0),
    "fp16": Format("fp16", 0),
    "fp32": Format("fp32", 0),
}  # what a checkpoint's weights are converted to


@dataclass(frozen=True)
class Packed:
    """Weights in panels of 32 rows, as the kernels read them: what `pack` makes.

    format  of the numbers
    packed  uint8, 64-byte aligned
    shape   (N, K): outputs, inputs
    """

    format: Format
    packed: Array
    shape: tuple[int, int]

    def rows(self, begin: int, end: int) -> Packed:
        """Rows begin to end - 1, which is a multiple of 32 as `begin` is, or the last: the same bytes, to write to."""
        if not 0 <= begin < end <= self.shape[0] or begin % PANEL or (end % PANEL and end != self.shape[0]):
            raise CoreError(None, "rows", f"{begin} to {end} are no panels of {self.shape[0]} rows")
        size = len(self.packed) // -(-self.shape[0] // PANEL)
        part = self.packed[begin // PANEL * size : -(-end // PANEL) * size]
        return Packed(self.format, part, (end - begin, self.shape[1]))


def empty(form: Format, shape: tuple[int, int]) -> Packed:
    """A weight whose rows are still to be written."""
    size = packed_bytes(form, shape)
    if not size:
        raise CoreError(None, "format", f"{form} does not exist, or cannot hold shape {list(shape)}")
    return Packed(form, aligned(size), shape)


def quantise(w: Array, form: str, isa: str | None = None, threads: int = 1, out: Packed | None = None) -> Packed:
    """w [n, k] -> packed weights of one of `FORMATS`. Float16 and float32 w, or bfloat16 as uint16 bits.

    Columns that are missing to a whole group count as zero. Into `out` where it is given, as by `pack`.
    """
    if form not in ("q4", "q8"):
        return pack(FORMATS[form], w, threads=threads, out=out)
    _, K = _shape("w", w, 2)
    whole = np.pad(w, ((0, 0), (0, -K % _lib().QWQ_GROUP))) if K % _lib().QWQ_GROUP else w
    code, scale = (quantise_q4 if form == "q4" else quantise_q8)(whole, isa, threads)
    return pack(FORMATS[form], code[:, :K], scale, threads=threads, out=out)


def quantise_q4(w: Array, isa: str | None = None, threads: int = 1) -> tuple[Array, Array]:
    """w [n, k] -> code [n, k], scale [n, k / 64]: `numerics.quant.quantise_q4`, to the bit."""
    return _quantise("q4", w, np.uint8, isa, threads)


def quantise_q8(w: Array, isa: str | None = None, threads: int = 1) -> tuple[Array, Array]:
    """w [n, k] -> q [n, k], scale [n, k / 64]: `numerics.quant.quantise_q8`, to the bit."""
    return _quantise("q8", w, np.int8, isa, threads)


def quantise_activations(x: Array, isa: str | None = None) -> tuple[Array, Array, Array]:
    """x [T, n] -> q int8 [T, n], step uint8 [T, n / 64], scale [T, 1]

    `numerics.quant.quantise_activations`, to the bit; a step is a ratio's place in `numerics.quant.RATIOS`.
    """
    T, K = _shape("x", x, 2)
    x = np.ascontiguousarray(x, np.float32)
    q, step = np.empty((T, K), np.int8), np.empty((T, K // _lib().QWQ_GROUP), np.uint8)
    scale = np.empty((T, 1), np.float32)
    _check(_lib().qwq_quantise_activations(_at(q), _at(step), _at(scale), _at(x), T, K, ISAS.index(chosen_isa(isa))))
    return q, step, scale


_CODES = {"q8": np.int8, "bf16": np.uint16, "fp16": np.float16, "fp32": np.float32}
_NEEDS = {
    "plain": ("scale",),
    "zero": ("scale", "zero"),
    "offset": ("scale", "offset"),
    "super": ("scale", "small"),
    "super_min": ("scale", "offset", "small", "least"),
}
_PARTS = {"scale": np.float16, "offset": np.float16, "zero": np.uint8, "least": np.uint8}


def pack(
    form: Format,
    code: Array,
    scale: Array | None = None,
    *,
    zero: Array | None = None,
    offset: Array | None = None,
    small: Array | None = None,
    least: Array | None = None,
    threads: int = 1,
    out: Packed | None = None,
) -> Packed:
    """code [n, k], and for each group [n, m] what the format's scales need -> packed weights.

    "super" and "super_min" have one `scale` (d) and `offset` (dmin) for 256 columns, and `small` and `least` for each
    group. `out`: of `empty`, or rows of it. Raises CoreError for what does not fit.
    """
    N, K = _shape("code", code, 2)
    arrays = {"code": np.ascontiguousarray(code, _CODES.get(form.codes, np.uint8))}
    c_format = _c_format(form)
    made = empty(form, (N, K)) if out is None else out
    if made.format != form or made.shape != (N, K):
        raise CoreError(None, "out", f"must be {form} {[N, K]}, got {made.format} {list(made.shape)}")
    given = {"scale": scale, "zero": zero, "offset": offset, "small": small, "least": least}
    for name in _NEEDS[form.scales] if form.group else ():
        value = given.pop(name)
        if value is None:
            raise CoreError(None, name, f"is needed by {form}")
        columns = 256 if form.scales.startswith("super") and name in ("scale", "offset") else form.group
        wanted = (N, -(-K // columns))
        if np.shape(value) != wanted:
            raise CoreError(None, name, f"must have shape {list(wanted)}, got {list(np.shape(value))}")
        dtype = _PARTS.get(name, np.int8 if form.scales == "super" else np.uint8)
        arrays[name] = np.ascontiguousarray(value, dtype).view(np.uint8 if dtype == np.int8 else dtype)
    for name, value in given.items():
        if value is not None:
            raise CoreError(None, name, f"is not part of {form}")
    weight = ffi.new("qwq_weight *", {name: _at(a) for name, a in arrays.items()})
    _check(_lib().qwq_pack(_at(made.packed), c_format, weight, N, K, _threads(threads)))
    return made


def packed_bytes(form: Format, shape: tuple[int, int]) -> int:
    """Bytes of a weight [n, k] in this format; 0 if there is no such format, or it cannot hold that."""
    if form.codes not in _CODE_NUMBERS or form.scales not in _SCALE_NUMBERS:
        return 0
    return int(_lib().qwq_packed_bytes(_c_format(form), *shape))


def matmul(
    x: Array,
    w: Packed,
    *,
    norm: Array | None = None,
    eps: float = 0.0,
    bias: Array | None = None,
    residual: Array | None = None,
    swiglu: bool = False,
    out: Array | None = None,
    isa: str | None = None,
    threads: int = 1,
    stop: Stop | None = None,
) -> Array:
    """x [T, k], packed w [n, k], bias [n], residual [T, n] -> [T, n]

    In this order, all but the product where it is asked for:
        x = `numerics.fixed.rmsnorm`(x, norm, eps)
        y = x w^T: `numerics.quant.matmul_integers` or `matmul_floats`
        y = y + bias
        y = residual + y
        y = `numerics.fixed.swiglu`(gate, up), for a w of `interleave`: [T, n / 2]
    To the bit, for any isa and threads. Into `out` where it is given, which may be `residual`. Raises Stopped where
    `stop` was set.
    """
    T, K = _shape("x", x, 2)
    N, columns = w.shape
    if columns != K:
        raise CoreError(None, "x", f"has {K} columns, and the weight {columns}")
    x = np.ascontiguousarray(x, np.float32)
    fusion = ffi.new("qwq_fusion *")
    held = []  # what C is given pointers to
    for name, value, shape in (("norm", norm, (K,)), ("bias", bias, (N,)), ("residual", residual, (T, N))):
        if value is not None:
            if np.shape(value) != shape:
                raise CoreError(None, name, f"must have shape {list(shape)}, got {list(np.shape(value))}")
            held.append(np.ascontiguousarray(value, np.float32))
            setattr(fusion, name, _at(held[-1]))
    fusion.eps, fusion.swiglu, fusion.stop = eps, swiglu, _flag(stop)
    shape = (T, N // 2 if swiglu else N)
    y = np.empty(shape, np.float32) if out is None else out
    if y.shape != shape or y.dtype != np.float32 or not y.flags.c_contiguous:
        raise CoreError(None, "out", f"must be float32 {list(shape)}, and contiguous")
    c_format = _c_format(w.format)
    scratch = _scratch(_lib().qwq_matmul_scratch(c_format, T, K, _threads(threads)))
    isa_number = ISAS.index(chosen_isa(isa))
    _check(
        _lib().qwq_matmul(_at(y), c_format, _at(w.packed), _at(x), fusion, _at(scratch), T, N, K, isa_number, threads)
    )
    return y


def interleave(gate: Array, up: Array) -> Array:
    """gate [F, n], up [F, n] -> [2 * F, n]

    Rows in the order that `matmul` wants for swiglu: 32 of gate, 32 of up, and so on. F to a multiple of 32 by zeros,
    which make zeros.
    """
    F, n = gate.shape
    pairs = np.zeros((-(-F // 32), 2, 32, n), gate.dtype)
    for i, w in enumerate((gate, up)):
        for start in range(0, F, 32):
            pairs[start // 32, i, : min(32, F - start)] = w[start : start + 32]
    return pairs.reshape(-1, n)


def aligned(size: int) -> Array:
    """uint8 [size] that begins at a multiple of 64, as kernels want it. NumPy asks for huge pages where that helps."""
    whole = np.empty(size + ALIGN, np.uint8)
    start = -whole.ctypes.data % ALIGN
    return whole[start : start + size]


MOST_THREADS = 1024  # csrc/qwq.h
_forked = _teams = False  # this process was forked from one that had threads; calls with threads were made here


def _after_fork() -> None:
    global _forked
    _forked = _forked or _teams


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _threads(number: int) -> int:
    """A number of threads that can be asked for here.

    OpenMP's threads do not survive a fork: a child that asked for them would wait for ever. One thread works there.
    """
    global _teams
    if not 1 <= number <= MOST_THREADS:
        raise CoreError(None, "threads", f"must be 1 to {MOST_THREADS}, got {number}")
    if number > 1:
        if _forked:
            raise CoreError(None, "threads", "must be 1 after a fork of a process that used more: start it by spawn")
        _teams = True
    return number


_kept = threading.local()


def _scratch(size: int) -> Array:
    """What a call needs while it runs: kept for the thread's next call, for fresh pages cost as much as a product."""
    if not hasattr(_kept, "scratch") or len(_kept.scratch) < size:
        _kept.scratch = aligned(size)
    kept: Array = _kept.scratch
    return kept


_CODE_NUMBERS = {name: i for i, name in enumerate(("q4", "u4", "u5", "u6", "q8", "bf16", "fp16", "fp32"))}
_SCALE_NUMBERS = {name: i for i, name in enumerate(_NEEDS)}


def _c_format(form: Format) -> Any:
    if form.codes not in _CODE_NUMBERS or form.scales not in _SCALE_NUMBERS:
        raise CoreError(None, "format", f"{form} does not exist")
    values = [_CODE_NUMBERS[form.codes], form.group, _SCALE_NUMBERS[form.scales], form.zero]
    _lib()
    return ffi.new("qwq_format *", values)


def _quantise(form: str, w: Array, dtype: Any, isa: str | None, threads: int) -> tuple[Array, Array]:
    N, K = _shape("w", w, 2)
    source = {"u2": "BF16", "f2": "FP16"}.get(w.dtype.str[1:], "FP32")
    w = np.ascontiguousarray(w, np.float32 if source == "FP32" else w.dtype)
    values, scale = np.empty((N, K), dtype), np.empty((N, K // _lib().QWQ_GROUP), np.float16)
    function, number = getattr(_lib(), f"qwq_quantise_{form}"), getattr(_lib(), f"QWQ_{source}")
    how = ISAS.index(chosen_isa(isa)), _threads(threads)
    _check(function(_at(values), _at(scale), _at(w), N, K, number, *how))
    return values, scale


def _features(bits: int) -> list[str]:
    return [name for i, name in enumerate(FEATURES) if bits >> i & 1]


def _lib() -> Any:
    if lib is None:
        raise CoreError(None, "core", "is not built: install with a C compiler, or use the NumPy backend")
    return lib


def _shape(name: str, array: Array, rank: int) -> tuple[int, ...]:
    if np.ndim(array) != rank:
        raise CoreError(None, name, f"must have {rank} dimensions, got shape {list(np.shape(array))}")
    return tuple(array.shape)


def _flag(stop: Stop | None) -> Any:
    return ffi.NULL if stop is None else stop.flag


def _check(code: int) -> None:
    if code == lib.QWQ_ESTOP:
        raise Stopped
    if code:
        reasons = {
            lib.QWQ_EISA: "the instruction set cannot run here",
            lib.QWQ_ESIZE: "a size is impossible",
            lib.QWQ_EALIGN: "an array is not aligned",
            lib.QWQ_EFORMAT: "the format does not exist, or an array does not fit it",
            lib.QWQ_EOVERLAP: "arrays overlap",
            lib.QWQ_ENULL: "an array is missing",
        }
        raise CoreError(None, None, reasons.get(code, f"failed with code {code}"))


_C_TYPES = {"f4": "float", "f2": "uint16_t", "u2": "uint16_t", "i1": "int8_t", "i4": "int32_t", "u1": "uint8_t"}


def _at(array: Array) -> Any:
    """The address of an array, as a pointer of its type, which holds it. cffi's own way is five times as fast."""
    c_type = _C_TYPES[array.dtype.str[1:]]
    if array.flags.c_contiguous:
        return ffi.from_buffer(c_type + "[]", array)
    return ffi.cast(c_type + " *", array.ctypes.data)
