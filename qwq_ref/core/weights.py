"""Packed weights: quantising a matrix, and packing it as the kernels read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._ffi import Array, CoreError, at, check, expect, ffi, library, shape_of
from .dtypes import BFLOAT16, integers, rounded, weights
from .formats import (
    CODES,
    FORMATS,
    GROUP,
    LARGEST,
    PANEL,
    SCALES,
    SUPER,
    Format,
    block_of,
    c_format,
    c_values,
    packed_bytes,
)
from .isa import isa_number
from .magnitude import FLOAT32_MAX, first_beyond
from .memory import aligned
from .threads import checked_threads

_LAYOUTS = {"rows": 0, "columns": 1, "eights": 2}  # the enumeration of csrc/qwq.h
_FAINT_BITS = int(np.float16(2.0**-20).view(np.uint16))
# The levels of q4, as in csrc/common/kernels.h.
_LEVELS = np.array([-55, -43, -34, -26, -19, -13, -7, -2, 4, 10, 16, 22, 29, 38, 48, 63], np.int8)
MOST_LOST = {"q4": 0.03, "q8": 0.001}  # parts of a weight's energy: several times what rounding costs elsewhere


@dataclass(frozen=True)
class Packed:
    """A weight in panels of 32 rows, as the kernels read it. `pack` and `quantise` make it.

    format   how its numbers are stored
    packed   uint8, 64-byte aligned
    shape    (N, K): outputs, inputs
    columns  int32 [K], contiguous: which column of the activations each column belongs to; None: the same one
    """

    format: Format
    packed: Array
    shape: tuple[int, int]
    columns: Array | None = None

    def rows(self, begin: int, end: int) -> Packed:
        """Return rows begin to end - 1 as a view, to write to.

        `begin` is a multiple of 32; `end` is one, too, or the last row. Raises CoreError for others.
        """
        if not 0 <= begin < end <= self.shape[0] or begin % PANEL or (end % PANEL and end != self.shape[0]):
            raise CoreError(None, "rows", f"{begin} to {end} are no panels of {self.shape[0]} rows")
        size = len(self.packed) // -(-self.shape[0] // PANEL)
        part = self.packed[begin // PANEL * size : -(-end // PANEL) * size]
        return Packed(self.format, part, (end - begin, self.shape[1]), self.columns)

    def every_second(self, begin: int, count: int) -> Packed:
        """Return every second panel from row `begin` on, for `count` rows, as a view to write to with `step` 2.

        `begin` is a multiple of 32. Raises CoreError where there are not so many rows.
        """
        panels, last = -(-self.shape[0] // PANEL), begin // PANEL + 2 * (-(-count // PANEL) - 1)
        if begin % PANEL or begin < 0 or count <= 0 or last >= panels:
            raise CoreError(None, "rows", f"{count} from {begin} on, in every second panel, are not in {panels} panels")
        size = len(self.packed) // panels
        part = self.packed[begin // PANEL * size : (last + 1) * size]
        return Packed(self.format, part, (count, self.shape[1]), self.columns)

    def expect(self, format: Format, shape: tuple[int, int], step: int = 1) -> None:
        """Raise CoreError if this is no place for a weight of a format and shape, in panels `step` apart."""
        if self.format != format or self.shape != shape:
            wanted, got = f"{format} {list(shape)}", f"{self.format} {list(self.shape)}"
            raise CoreError(None, "out", f"must be {wanted}, got {got}")
        size, panels = packed_bytes(format, shape), -(-shape[0] // PANEL)
        if step not in (1, 2) or len(self.packed) != size // panels * ((panels - 1) * step + 1):
            raise CoreError(None, "out", f"of {len(self.packed)} bytes does not hold {panels} panels, {step!r} apart")


@dataclass(frozen=True)
class Words:
    """The codes of a weight [n, k] in words of 32 bits, as a file stores them: csrc/qwq.h has the layouts.

    layout  "rows" (MLX), "columns" (GPTQ) or "eights" (AWQ)
    bits    of a code, 2 to 8
    words   uint32 or int32 [rows of words, words]; each row of words is contiguous
    shape   (n, k)
    order   int32 [k] for "columns": the column of the words that each column of the weight is; None: the same one
    """

    layout: str
    bits: int
    words: Array
    shape: tuple[int, int]
    order: Array | None = None

    def struct(self) -> Any:
        """Return it as a `qwq_words *` of C. Raises CoreError for arrays of another kind or size."""
        (N, K), words = self.shape, self.words
        if self.layout not in _LAYOUTS:
            raise CoreError(None, "layout", f"must be one of {', '.join(_LAYOUTS)}, got {self.layout[:40]}")
        wanted = {"rows": (N, K * self.bits // 32), "columns": (K * self.bits // 32, N), "eights": (K, -(-N // 8))}
        expect("words", words, wanted[self.layout])
        rows, columns = words.shape
        apart = words.strides[0] if rows > 1 else 4 * columns  # NumPy gives any stride to a dimension of 1
        if words.dtype.str not in ("<u4", "<i4") or apart < 4 * columns or (columns > 1 and words.strides[1] != 4):
            raise CoreError(None, "words", f"must be rows of uint32 or int32, got {words.dtype}")
        if self.order is not None:
            expect("order", self.order, (K,))
            if self.order.dtype != np.int32 or not self.order.flags.c_contiguous:
                raise CoreError(None, "order", f"must be contiguous int32, got {self.order.dtype}")
        address = ffi.cast("uint32_t *", words.ctypes.data)
        order = ffi.NULL if self.order is None else at(self.order)
        return ffi.new("qwq_words *", (address, apart // 4, order, _LAYOUTS[self.layout], self.bits))


def linear(w: Packed) -> Any:
    """Return a packed weight as a `qwq_linear *` of C. The caller holds the weight."""
    return ffi.new("qwq_linear *", (c_values(w.format), at(w.packed), _columns(w)))


def fill_linear(struct: Any, w: Packed) -> None:
    """Write a packed weight to a `qwq_linear` of C. The caller holds the weight."""
    struct.format, struct.packed, struct.columns = c_values(w.format), at(w.packed), _columns(w)


def _columns(w: Packed) -> Any:
    """Return the order of columns for C. Raises CoreError for an array of another kind."""
    if w.columns is None:
        return ffi.NULL
    expect("columns", w.columns, (w.shape[1],))
    if w.columns.dtype != np.int32 or not w.columns.flags.c_contiguous:
        raise CoreError(None, "columns", f"must be contiguous int32, got {w.columns.dtype}")
    return at(w.columns)


def empty(format: Format, shape: tuple[int, int]) -> Packed:
    """Return a packed weight whose rows are still to be written. Raises CoreError for an impossible format or shape."""
    size = packed_bytes(format, shape)
    if not size:
        raise CoreError(None, "format", f"{format} does not exist, or cannot hold shape {list(shape)}")
    return Packed(format, aligned(size), shape)


def quantise(
    w: Array,
    name: str,
    isa: str | None = None,
    threads: int = 1,
    out: Packed | None = None,
    checked: bool = False,
) -> Packed:
    """Pack w [n, k] in a format of `FORMATS`, rounded to nearest.

    w is of floats, or bfloat16 as uint16 bits. Columns that are missing to a whole group count as zero. The result goes
    into `out` where it is given, as for `pack`. Raises CoreError for another dtype, and for a number that the format
    does not hold: one beyond its range, and NaN or infinity in q4 and q8. Raises CoreError for weights too small for
    the scales of q4 and q8: see `lost_energy`.

    checked  whether the caller has looked for numbers beyond the range
    """
    if name not in FORMATS:
        raise CoreError(None, "format", f"must be one of {', '.join(FORMATS)}, got {name[:40]}")
    shape_of("w", w, 2)
    if name not in LARGEST:
        wanted = {"bf16": BFLOAT16}.get(name, np.dtype(CODES[name].dtype))
        w = weights("w", w, wanted)
        return pack(FORMATS[name], w if w.dtype == wanted else rounded("w", w, wanted), threads=threads, out=out)
    w = weights("w", w)
    if not checked:
        _finite(name, w, LARGEST[name])
    made, code, scale = quantise_groups(w, name, isa, threads, out)
    lost = lost_energy(name, w, code, scale)
    if lost is not None and lost.sum() > MOST_LOST[name] * energy(w).sum():
        raise CoreError(None, "w", f"is too small for the scales of {name}, which would lose it: take bf16 or fp32")
    return made


def quantise_groups(
    w: Array, name: str, isa: str | None = None, threads: int = 1, out: Packed | None = None
) -> tuple[Packed, Array, Array]:
    """`quantise` in q4 or q8, without a look at the numbers -> packed, and what it is made of: code and scale."""
    _, K = shape_of("w", w, 2)
    w = weights("w", w)
    whole = np.pad(w, ((0, 0), (0, -K % GROUP))) if K % GROUP else w
    code, scale = _quantised(name, whole, isa, threads)
    return pack(FORMATS[name], code[:, :K], scale, threads=threads, out=out), code, scale


def energy(w: Array) -> Array:
    """w [n, k] -> float64 [n]: the sum of the squares of each row."""
    wide = w.astype(np.float64)
    squares: Array = np.einsum("nk,nk->n", wide, wide)
    return squares


def lost_energy(name: str, w: Array, code: Array, scale: Array) -> Array | None:
    """w [n, k], code [n, K], scale [n, m] of q4 or q8 -> float64 [n]: the energy of the error; None if it is 0.

    Counts groups with scales below 2^-20, of which float16 keeps fewer than five bits, and none below 2^-25. A weight
    is lost where the error is more than `MOST_LOST` of its own energy. Rows of tiny numbers, which nothing uses, are a
    small part of that.
    """
    faint = np.argwhere(scale.view(np.uint16) & 0x7FFF < _FAINT_BITS)
    if not len(faint):
        return None
    rows, groups = faint.T
    whole = np.pad(w, ((0, 0), (0, code.shape[1] - w.shape[1]))).reshape(len(w), -1, GROUP)
    level = code.reshape(whole.shape)[rows, groups]
    level = _LEVELS[level] if name == "q4" else level
    rest = whole[rows, groups].astype(np.float64) - level * scale[rows, groups, None].astype(np.float64)
    lost = np.bincount(rows, energy(rest), len(w))
    return lost if lost.any() else None


def quantise_q4(w: Array, isa: str | None = None, threads: int = 1) -> tuple[Array, Array]:
    """w [n, k] -> code [n, k], scale [n, k / 64]: `numerics.quant.quantise_q4`, to the bit.

    Raises CoreError for a dtype as `quantise`, and for NaN and infinity.
    """
    return _quantised("q4", _finite("q4", weights("w", w)), isa, threads)


def quantise_q8(w: Array, isa: str | None = None, threads: int = 1) -> tuple[Array, Array]:
    """w [n, k] -> q [n, k], scale [n, k / 64]: `numerics.quant.quantise_q8`, to the bit.

    Raises CoreError for a dtype as `quantise`, and for NaN and infinity.
    """
    return _quantised("q8", _finite("q8", weights("w", w)), isa, threads)


def _finite(name: str, w: Array, limit: float = FLOAT32_MAX) -> Array:
    found = first_beyond(w, limit)
    if found is not None:
        raise CoreError(None, "w", f"holds {found[1]} at {found[0]}, which {name} does not hold")
    return w


def _quantised(name: str, w: Array, isa: str | None, threads: int) -> tuple[Array, Array]:
    """w [n, k] of `dtypes.weights` -> codes [n, k], scale [n, k / 64]"""
    N, K = shape_of("w", w, 2)
    source = {np.dtype(np.float32): "FP32", np.dtype(np.float16): "FP16", BFLOAT16: "BF16"}[w.dtype]
    if source == "BF16":
        w = w.view(np.uint16)
    values, scale = np.empty((N, K), CODES[name].dtype), np.empty((N, K // GROUP), np.float16)
    function, number = getattr(library(), f"qwq_quantise_{name}"), getattr(library(), f"QWQ_{source}")
    check(function(at(values), at(scale), at(w), N, K, number, isa_number(isa), checked_threads(threads)))
    return values, scale


def pack(
    format: Format,
    code: Array | Words,
    scale: Array | None = None,
    *,
    zero_point: Array | None = None,
    offset: Array | None = None,
    sub_scale: Array | None = None,
    sub_min: Array | None = None,
    threads: int = 1,
    out: Packed | None = None,
    step: int = 1,
) -> Packed:
    """Pack code [n, k], and for each group [n, m] the arrays that the format's scales need.

    "super" and "super_min" have one `scale` (d) and `offset` (dmin) for 256 columns, and `sub_scale` and `sub_min` for
    each group. Codes of bf16 are bfloat16, or its bits in integers.

    out   what `empty` returned, or rows of it
    step  2: every second panel of a weight is written, and `out` is what `every_second` returned

    Raises CoreError for arrays that do not fit. Their numbers are never changed, except that scales and offsets are
    rounded to float16, or for "offset_bf16" to bfloat16.
    """
    N, K = code.shape if isinstance(code, Words) else shape_of("code", code, 2)
    made = empty(format, (N, K)) if out is None else out
    made.expect(format, (N, K), step)
    arrays: dict[str, Array] = {}
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
        signed = format.scales == "super" and name == "sub_scale"
        arrays[name] = _bytes_of(name, value, signed, scales.bfloat16)
    for name, value in given.items():
        if value is not None:
            raise CoreError(None, name, f"is not part of {format}")
    if isinstance(code, Words):
        pointers = {"words": code.struct()}
    else:
        arrays["code"] = _codes(format.codes, code)
        pointers = {}
    weight = ffi.new("qwq_weight *", pointers | {name: at(a) for name, a in arrays.items()})
    check(library().qwq_pack(at(made.packed), c_format(format), weight, N, K, step, checked_threads(threads)))
    return made


def unpack_rows(w: Packed, rows: Array) -> Array:
    """Return rows of a packed weight [n, k]: rows [T] -> [T, k], what codes and scales mean in float32.

    Rows of a format of floats keep the dtype that `pack` takes. Raises CoreError for q4, whose codes are no numbers,
    and for a row that the weight does not have.
    """
    if w.format.codes == "q4":
        raise CoreError(None, "format", "q4 is no format whose rows can be unpacked")
    N, K = w.shape
    rows = integers("rows", rows, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < N:
        raise CoreError(None, "rows", f"must be 0 to {N - 1}, got {rows.min()} to {rows.max()}")
    if w.format.group:
        unpacked: Array = _decoded(w, rows)
    else:
        panels = w.packed.view(CODES[w.format.codes].dtype).reshape(-(-N // PANEL), -1, PANEL)
        unpacked = panels[rows // PANEL, :K, rows % PANEL]
    if w.columns is None:
        return unpacked
    ordered = np.empty_like(unpacked)
    ordered[:, w.columns] = unpacked
    return ordered


def _decoded(w: Packed, rows: Array) -> Array:
    """rows [T] of a packed weight of integers -> float32 [T, k]. docs/packed.md has the places of its bytes."""
    format, (N, K) = w.format, w.shape
    columns, size = block_of(format)
    codes, groups = CODES[format.codes], columns // format.group
    blocks = w.packed.reshape(-(-N // PANEL), -1, size)
    panel, r = rows // PANEL, rows % PANEL
    k = np.arange(columns)
    line = k % GROUP // 4 * 2 + r[:, None] // 16  # [T, columns], of the codes of 64 columns
    within, section = r[:, None] % 16 * 4 + k % 4, k // GROUP * (codes.bits * PANEL * GROUP // 8)

    def taken(at: Array) -> Array:
        """at [T, n], places in a block -> bytes [T, blocks, n]"""
        picked: Array = blocks[panel[:, None, None], np.arange(blocks.shape[1])[:, None], at[:, None]]
        return picked

    if codes.planes:
        code, shift, start = np.zeros((len(rows), blocks.shape[1], columns), np.uint8), 0, 0
        for bits in codes.planes:
            in_byte = 8 // bits
            plane = taken(section + start + line // in_byte * 64 + within)
            code |= (plane >> (line % in_byte * bits)[:, None].astype(np.uint8) & np.uint8((1 << bits) - 1)) << shift
            shift, start = shift + bits, start + 4 * bits * 64
        levels = code.astype(np.float32) - np.float32(format.zero_point)
    else:
        excess = 128 if format.codes == "q8" else format.zero_point
        levels = taken(section + line * 64 + within).astype(np.float32) - np.float32(excess)

    def numbers(at: int, count: int, dtype: Any) -> Array:
        """Return the numbers of each row from a place behind the codes on, [T, blocks, count], in float32."""
        width = np.dtype(dtype).itemsize
        places = at + (np.arange(count)[:, None] * PANEL * width + np.arange(width)).ravel()
        found = taken(codes.bits * PANEL * columns // 8 + places + r[:, None] * width)
        values: Array = np.ascontiguousarray(found).view(dtype).astype(np.float32)
        return values

    result = levels.reshape(*levels.shape[:2], groups, format.group)
    offset = None
    if format.scales == "super":
        scale = numbers(0, 1, "<f2") * numbers(64, groups, "i1")
    elif format.scales == "super_min":
        scale = numbers(0, 1, "<f2") * numbers(128, groups, "u1")
        offset = -(numbers(64, 1, "<f2") * numbers(128 + PANEL * groups, groups, "u1"))
    else:
        half = BFLOAT16 if SCALES[format.scales].bfloat16 else "<f2"
        scale = numbers(0, groups, half)
    if format.scales == "zero":
        result -= numbers(2 * PANEL * groups, groups, "u1")[..., None]
    if format.scales.startswith("offset"):
        offset = numbers(2 * PANEL * groups, groups, half)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found where it is used
        result *= scale[..., None]
        if offset is not None:
            result += offset[..., None]
    return result.reshape(len(rows), -1)[:, :K]


def _bytes_of(name: str, value: Array, signed: bool, bfloat16: bool) -> Array:
    """Return an array of scales as C reads it: 16 bits, or bytes, which are signed for sub_scale of "super"."""
    if name in ("scale", "offset"):
        return rounded(name, value, BFLOAT16 if bfloat16 else np.dtype(np.float16)).view(np.uint16)
    return integers(name, value, np.int8 if signed else np.uint8).view(np.uint8)


def _codes(name: str, code: Any) -> Array:
    """Return codes in the type that C reads, with their values."""
    codes, array = CODES[name], np.asarray(code)
    wanted = np.dtype(codes.dtype)
    if wanted.kind in "iu":
        if array.dtype == BFLOAT16 and name == "bf16":
            return np.ascontiguousarray(array).view(np.uint16)
        return integers("code", array, wanted, None if codes.dtype == np.int8 else (1 << codes.bits) - 1)
    if array.dtype.newbyteorder("=") != wanted:
        raise CoreError(None, "code", f"must be {wanted} for {name}, got {array.dtype.name}: `quantise` converts")
    return np.ascontiguousarray(array, wanted)


def interleave(gate: Array, up: Array) -> Array:
    """gate [F, n], up [F, n] -> [2 * F, n]

    The order of rows that `matmul` needs for swiglu: 32 rows of gate, 32 of up, and so on. Zeros fill F to a multiple
    of 32; they make zeros.
    """
    F, n = shape_of("gate", gate, 2)
    expect("up", up, (F, n))
    if gate.dtype != up.dtype:
        raise CoreError(None, "up", f"must be {gate.dtype}, as gate, got {up.dtype}")
    pairs = np.zeros((-(-F // PANEL), 2, PANEL, n), gate.dtype)
    for i, w in enumerate((gate, up)):
        for start in range(0, F, PANEL):
            pairs[start // PANEL, i, : min(PANEL, F - start)] = w[start : start + PANEL]
    return pairs.reshape(-1, n)
