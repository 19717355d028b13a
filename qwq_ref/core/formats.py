"""The table of formats: how one packed matrix stores its numbers, and how many bytes it takes.

This module needs no compiled core. csrc/common/formats.c holds the same table for C, and a test compares both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._ffi import CoreError, ffi, library, names

PANEL = 32  # rows of a weight that are packed together
GROUP = 64  # columns that the kernels take at a time, and activations that share a scale
ALIGN = 64  # bytes: blocks, weights, caches and scratch begin at multiples of this
SUPER = 256  # columns that share the float16 scale of a super-block
MOST_SIZE = 1 << 30  # rows or columns: QWQ_MOST_SIZE of csrc/qwq.h


@dataclass(frozen=True)
class CodeType:
    """One kind of codes: the integer of one weight, or its float.

    bits    of one code
    dtype   of the codes that `core.pack` takes
    groups  the sizes of group that exist; none for floats
    scales  the names of `SCALES` that exist
    zero_point  the largest zero point of a whole weight
    planes  bits of each plane that a code is divided into, the lowest first; none where codes are bytes or floats
    """

    bits: int
    dtype: Any = np.uint8
    groups: tuple[int, ...] = ()
    scales: tuple[str, ...] = ()
    zero_point: int = 0
    planes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scales:
    """One way to store scales, and zero points or offsets.

    arrays          the arguments of `core.pack` that it takes, each [n, k / group]
    group_bytes     bytes that a row stores for each group
    super_arrays    those of `arrays` that have one float16 for each super-block of 256 columns instead
    zero_point      whether one zero point serves the whole weight
    bfloat16        whether scales and offsets are bfloat16, and not float16
    """

    arrays: tuple[str, ...]
    group_bytes: int
    super_arrays: tuple[str, ...] = ()
    zero_point: bool = False
    bfloat16: bool = False


SCALES = {
    "plain": Scales(("scale",), 2, zero_point=True),
    "zero": Scales(("scale", "zero_point"), 3),
    "offset": Scales(("scale", "offset"), 4),
    "offset_bf16": Scales(("scale", "offset"), 4, bfloat16=True),
    "super": Scales(("scale", "sub_scale"), 1, ("scale",), zero_point=True),
    "super_min": Scales(("scale", "offset", "sub_scale", "sub_min"), 2, ("scale", "offset")),
}
_SIZES = (16, 32, 64, 128)
CODES = {
    "q4": CodeType(4, groups=(64,), scales=("plain",), planes=(4,)),
    "u4": CodeType(4, groups=_SIZES, scales=tuple(SCALES), zero_point=63, planes=(4,)),
    "u5": CodeType(5, groups=_SIZES, scales=tuple(SCALES), zero_point=63, planes=(4, 1)),
    "u6": CodeType(6, groups=_SIZES, scales=tuple(SCALES), zero_point=63, planes=(4, 2)),
    "u8": CodeType(8, groups=_SIZES, scales=tuple(SCALES), zero_point=255),
    "q8": CodeType(8, np.int8, groups=_SIZES, scales=("plain", "super")),
    "bf16": CodeType(16, np.uint16),
    "fp16": CodeType(16, np.float16),
    "fp32": CodeType(32, np.float32),
}


@dataclass(frozen=True)
class Format:
    """The storage of the numbers of a packed weight.

    codes       a name of `CODES`
    group       columns that share a scale: 64 for q4; 16, 32, 64 or 128 for the others; 0 for floats
    scales      a name of `SCALES`; csrc/qwq.h says what each means
    zero_point  what every code exceeds its level by, for "plain" and "super"
    """

    codes: str
    group: int = 64
    scales: str = "plain"
    zero_point: int = 0


FORMATS = {
    "q4": Format("q4"),
    "q8": Format("q8"),
    "bf16": Format("bf16", 0),
    "fp16": Format("fp16", 0),
    "fp32": Format("fp32", 0),
}  # the formats that a checkpoint's weights are converted to

# The largest magnitude of a weight in q4 and q8: the largest float16 scale times the largest level.
LARGEST_SCALE = 65504.0
LARGEST = {"q4": LARGEST_SCALE * 63, "q8": LARGEST_SCALE * 127}

# The numbers that C has for the names.
_CODE_NUMBERS = {name: i for i, name in enumerate(names("qwq_code_name"))}
_SCALE_NUMBERS = {name: i for i, name in enumerate(names("qwq_scales_name"))}


def exists(format: Format) -> bool:
    """Return whether the kernels have this format."""
    codes, scales = CODES.get(format.codes), SCALES.get(format.scales)
    if codes is None or scales is None:
        return False
    if not codes.groups:
        return format == Format(format.codes, 0)
    possible = 0 <= format.zero_point <= (codes.zero_point if scales.zero_point else 0)
    return format.group in codes.groups and format.scales in codes.scales and possible


def packed_bytes(format: Format, shape: tuple[int, int]) -> int:
    """Return the bytes of a packed weight [n, k]; 0 if the format does not exist, or cannot hold the shape."""
    N, K = shape
    if not exists(format) or not (0 < N <= MOST_SIZE and 0 < K <= MOST_SIZE):
        return 0
    columns, block = block_of(format)
    return -(-N // PANEL) * -(-K // columns) * block


def block_of(format: Format) -> tuple[int, int]:
    """Return the columns and the bytes of one block of a panel."""
    codes, scales = CODES[format.codes], SCALES[format.scales]
    if not codes.groups:
        return GROUP, PANEL * GROUP * codes.bits // 8
    columns = SUPER if scales.super_arrays else max(format.group, GROUP)
    of_row = columns * codes.bits // 8 + columns // format.group * scales.group_bytes + 2 * len(scales.super_arrays)
    return columns, -(-PANEL * of_row // ALIGN) * ALIGN


def c_values(format: Format) -> tuple[int, int, int, int]:
    """Return the fields of a `qwq_format` of C. Raises CoreError for an unknown name."""
    library()
    try:
        return _CODE_NUMBERS[format.codes], format.group, _SCALE_NUMBERS[format.scales], format.zero_point
    except KeyError:
        raise CoreError(None, "format", f"{format} does not exist") from None


def c_format(format: Format) -> Any:
    """Return the format as a `qwq_format *` of C. Raises CoreError for an unknown name."""
    return ffi.new("qwq_format *", c_values(format))


def names_of(struct: Any) -> Format:
    """Return the format that a `qwq_format` of C is."""
    codes, scales = list(_CODE_NUMBERS), list(_SCALE_NUMBERS)
    return Format(codes[struct.codes], struct.group, scales[struct.scales], struct.zero_point)
