"""Packed weights: quantising a matrix, and packing it as the kernels read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._ffi import Array, CoreError, at, check, ffi, library, shape_of
from .formats import CODES, FORMATS, GROUP, PANEL, SCALES, SUPER, Format, c_format, c_values, packed_bytes
from .isa import isa_number
from .memory import aligned
from .threads import checked_threads


@dataclass(frozen=True)
class Packed:
    """A weight in panels of 32 rows, as the kernels read it. `pack` and `quantise` make it.

    format  how its numbers are stored
    packed  uint8, 64-byte aligned
    shape   (N, K): outputs, inputs
    """

    format: Format
    packed: Array
    shape: tuple[int, int]

    def rows(self, begin: int, end: int) -> Packed:
        """Return rows begin to end - 1 as a view, to write to.

        `begin` is a multiple of 32; `end` is one, too, or the last row. Raises CoreError for others.
        """
        if not 0 <= begin < end <= self.shape[0] or begin % PANEL or (end % PANEL and end != self.shape[0]):
            raise CoreError(None, "rows", f"{begin} to {end} are no panels of {self.shape[0]} rows")
        size = len(self.packed) // -(-self.shape[0] // PANEL)
        part = self.packed[begin // PANEL * size : -(-end // PANEL) * size]
        return Packed(self.format, part, (end - begin, self.shape[1]))


def linear(w: Packed) -> Any:
    """Return a packed weight as a `qwq_linear *` of C. The caller holds the weight."""
    return ffi.new("qwq_linear *", (c_values(w.format), at(w.packed)))


def fill_linear(struct: Any, w: Packed) -> None:
    """Write a packed weight to a `qwq_linear` of C. The caller holds the weight."""
    struct.format, struct.packed = c_values(w.format), at(w.packed)


def empty(format: Format, shape: tuple[int, int]) -> Packed:
    """Return a packed weight whose rows are still to be written. Raises CoreError for an impossible format or shape."""
    size = packed_bytes(format, shape)
    if not size:
        raise CoreError(None, "format", f"{format} does not exist, or cannot hold shape {list(shape)}")
    return Packed(format, aligned(size), shape)


def quantise(w: Array, name: str, isa: str | None = None, threads: int = 1, out: Packed | None = None) -> Packed:
    """Pack w [n, k] in a format of `FORMATS`.

    w is float16, float32, or bfloat16 as uint16 bits. Columns that are missing to a whole group count as zero. The
    result goes into `out` where it is given, as for `pack`.
    """
    if name not in ("q4", "q8"):
        return pack(FORMATS[name], w, threads=threads, out=out)
    _, K = shape_of("w", w, 2)
    whole = np.pad(w, ((0, 0), (0, -K % GROUP))) if K % GROUP else w
    code, scale = (quantise_q4 if name == "q4" else quantise_q8)(whole, isa, threads)
    return pack(FORMATS[name], code[:, :K], scale, threads=threads, out=out)


def quantise_q4(w: Array, isa: str | None = None, threads: int = 1) -> tuple[Array, Array]:
    """w [n, k] -> code [n, k], scale [n, k / 64]: `numerics.quant.quantise_q4`, to the bit."""
    return _quantise("q4", w, np.uint8, isa, threads)


def quantise_q8(w: Array, isa: str | None = None, threads: int = 1) -> tuple[Array, Array]:
    """w [n, k] -> q [n, k], scale [n, k / 64]: `numerics.quant.quantise_q8`, to the bit."""
    return _quantise("q8", w, np.int8, isa, threads)


def _quantise(name: str, w: Array, dtype: Any, isa: str | None, threads: int) -> tuple[Array, Array]:
    N, K = shape_of("w", w, 2)
    source = {"u2": "BF16", "f2": "FP16"}.get(w.dtype.str[1:], "FP32")
    w = np.ascontiguousarray(w, np.float32 if source == "FP32" else w.dtype)
    values, scale = np.empty((N, K), dtype), np.empty((N, K // GROUP), np.float16)
    function, number = getattr(library(), f"qwq_quantise_{name}"), getattr(library(), f"QWQ_{source}")
    check(function(at(values), at(scale), at(w), N, K, number, isa_number(isa), checked_threads(threads)))
    return values, scale


def pack(
    format: Format,
    code: Array,
    scale: Array | None = None,
    *,
    zero_point: Array | None = None,
    offset: Array | None = None,
    sub_scale: Array | None = None,
    sub_min: Array | None = None,
    threads: int = 1,
    out: Packed | None = None,
) -> Packed:
    """Pack code [n, k], and for each group [n, m] the arrays that the format's scales need.

    "super" and "super_min" have one `scale` (d) and `offset` (dmin) for 256 columns, and `sub_scale` and `sub_min` for
    each group. `out`: what `empty` returned, or rows of it. Raises CoreError for arrays that do not fit.
    """
    N, K = shape_of("code", code, 2)
    codes = CODES.get(format.codes)
    arrays = {"code": np.ascontiguousarray(code, codes.dtype if codes else np.uint8)}
    made = empty(format, (N, K)) if out is None else out
    if made.format != format or made.shape != (N, K):
        raise CoreError(None, "out", f"must be {format} {[N, K]}, got {made.format} {list(made.shape)}")
    given = {"scale": scale, "zero_point": zero_point, "offset": offset, "sub_scale": sub_scale, "sub_min": sub_min}
    scales = SCALES[format.scales]
    for name in scales.arrays if format.group else ():
        value = given.pop(name)
        if value is None:
            raise CoreError(None, name, f"is needed by {format}")
        columns = SUPER if name in scales.super_arrays else format.group
        wanted = (N, -(-K // columns))
        if np.shape(value) != wanted:
            raise CoreError(None, name, f"must have shape {list(wanted)}, got {list(np.shape(value))}")
        arrays[name] = _bytes_of(name, value, signed=format.scales == "super")
    for name, value in given.items():
        if value is not None:
            raise CoreError(None, name, f"is not part of {format}")
    weight = ffi.new("qwq_weight *", {name: at(a) for name, a in arrays.items()})
    check(library().qwq_pack(at(made.packed), c_format(format), weight, N, K, checked_threads(threads)))
    return made


def unpack_rows(w: Packed, rows: Array) -> Array:
    """Return rows of a packed weight [n, k] in floats: rows [T] -> [T, k], in the dtype that `pack` takes.

    Raises CoreError for a format with scales, and for a row that the weight does not have.
    """
    if w.format.group:
        raise CoreError(None, "format", f"{w.format.codes} is not a format of floats")
    N, K = w.shape
    rows = np.asarray(rows)
    if rows.size and not 0 <= rows.min() <= rows.max() < N:
        raise CoreError(None, "rows", f"must be 0 to {N - 1}, got {rows.min()} to {rows.max()}")
    panels = w.packed.view(CODES[w.format.codes].dtype).reshape(-(-N // PANEL), -1, PANEL)
    unpacked: Array = panels[rows // PANEL, :K, rows % PANEL]
    return unpacked


def _bytes_of(name: str, value: Array, signed: bool) -> Array:
    """Return an array of scales as C reads it: float16, or bytes, which are signed for sub_scale of "super"."""
    if name in ("scale", "offset"):
        return np.ascontiguousarray(value, np.float16)
    return np.ascontiguousarray(value, np.int8 if signed else np.uint8).view(np.uint8)


def interleave(gate: Array, up: Array) -> Array:
    """gate [F, n], up [F, n] -> [2 * F, n]

    The order of rows that `matmul` needs for swiglu: 32 rows of gate, 32 of up, and so on. Zeros fill F to a multiple
    of 32; they make zeros.
    """
    F, n = gate.shape
    pairs = np.zeros((-(-F // PANEL), 2, PANEL, n), gate.dtype)
    for i, w in enumerate((gate, up)):
        for start in range(0, F, PANEL):
            pairs[start // PANEL, i, : min(PANEL, F - start)] = w[start : start + PANEL]
    return pairs.reshape(-1, n)
