"""Rows of a quantised matrix as integers and scales, in a format of the core, and from one format to another."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from ..core import CODES, FORMATS, Array, Format, Packed, pack
from ..core.magnitude import FLOAT32_MAX, within


@dataclass(frozen=True)
class Parts:
    """Rows of a matrix [n, K] as `core.pack` takes them, in one format. Arrays that the format has not are None.

    code        [n, K]; floats for a format of floats
    scale       float16 [n, K / 32], or [n, K / 256] for "super" and "super_min"
    offset      float16, as `scale`. For "super_min" it is subtracted, times `sub_min`
    sub_scale   int8 for "super", uint8 for "super_min": [n, K / 16] or [n, K / 32]
    sub_min     uint8, as `sub_scale`
    zero_point  uint8 for "zero", as `scale`
    """

    code: Array
    scale: Array | None = None
    offset: Array | None = None
    sub_scale: Array | None = None
    sub_min: Array | None = None
    zero_point: Array | None = None

    def arrays(self) -> dict[str, Array]:
        """Return the arrays that are there, by the names of the arguments of `core.pack`."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    def is_finite(self) -> bool:
        """Return whether the scales, or the floats, are finite."""
        numbers = [self.code] if self.scale is None else [self.scale, self.offset]
        return all(within(each, FLOAT32_MAX) for each in numbers if each is not None)

    def pack(self, out: Packed, step: int = 1) -> bool:
        """Pack the rows into `out`, as `core.pack` does -> whether they are finite."""
        pack(out.format, out=out, step=step, **vars(self))
        return self.is_finite()


def dequantised(format: Format, rows: Parts) -> Array:
    """Return the float32 [n, K] that integers and scales mean, with each product and each difference rounded."""
    if rows.scale is None:
        return rows.code.astype(np.float32)
    columns = rows.code.shape[1]
    code = np.zeros((len(rows.code), -(-columns // format.group) * format.group), np.float32)
    code[:, :columns] = rows.code
    if format.zero_point:
        code -= np.float32(format.zero_point)
    groups = code.reshape(len(code), -1, format.group)  # a view
    if rows.zero_point is not None:
        groups -= rows.zero_point.astype(np.float32)[:, :, None]
    _scale(groups, rows)
    return code[:, :columns]


def _scale(groups: Array, rows: Parts) -> None:
    """groups float32 [n, m, columns], levels in place -> weights"""
    assert rows.scale is not None
    if rows.sub_scale is None:
        groups *= rows.scale.astype(np.float32)[:, :, None]
        if rows.offset is not None:
            groups += rows.offset.astype(np.float32)[:, :, None]
        return
    groups *= _times(rows.scale, rows.sub_scale)
    if rows.offset is not None and rows.sub_min is not None:
        groups -= _times(rows.offset, rows.sub_min)


def _times(scale: Array, of_groups: Array) -> Array:
    """scale float16 [n, m], of_groups integers [n, m g] -> their products [n, m g, 1]"""
    n, m = scale.shape
    product: Array = scale.astype(np.float32)[:, :, None] * of_groups.reshape(n, m, -1)
    return product.reshape(n, -1, 1)


def common(first: Format, second: Format) -> Format:
    """Return a format that holds the numbers of both without loss: of floats, if none of integers does.

    Gate and up are one matrix for the kernels, and a file can store them in two types.
    """
    if first == second:
        return first
    if not first.group or not second.group or first.scales != second.scales or "q4" in (first.codes, second.codes):
        return FORMATS["fp32"]
    group, bits = min(first.group, second.group), max(CODES[each.codes].bits for each in (first, second))
    if first.scales in ("zero", "offset", "offset_bf16", "super_min"):
        return Format(f"u{bits}", group, first.scales)
    lowest, highest = (
        min(_levels(each)[0] for each in (first, second)),
        max(_levels(each)[1] for each in (first, second)),
    )
    for codes, zero_point in (("u4", 8), ("u5", 16), ("u6", 32), ("q8", 0)):
        made = Format(codes, group, first.scales, zero_point)
        if _levels(made)[0] <= lowest and highest <= _levels(made)[1] and first.scales in CODES[codes].scales:
            return made
    return FORMATS["fp32"]


def _levels(format: Format) -> tuple[int, int]:
    """Return the smallest and the largest code minus the zero point."""
    if format.codes == "q8":
        return -128, 127
    return -format.zero_point, (1 << CODES[format.codes].bits) - 1 - format.zero_point


def widened(rows: Parts, format: Format, to: Format) -> Parts:
    """Return rows of one format in another one that `common` returned for it."""
    if format == to:
        return rows
    if not to.group:
        return Parts(dequantised(format, rows))
    shift = to.zero_point - format.zero_point
    code = (rows.code.astype(np.int16) + shift).astype(CODES[to.codes].dtype)
    times, whole = format.group // to.group, replace(rows, code=code)
    if times == 1:
        return whole
    of_groups = ("sub_scale", "sub_min") if rows.sub_scale is not None else ("scale", "offset", "zero_point")
    groups = -(-code.shape[1] // to.group)  # fewer than the repeated ones, if the last group is not whole
    repeated = {
        name: np.repeat(value, times, axis=1)[:, :groups] for name, value in whole.arrays().items() if name in of_groups
    }
    return Parts(**whole.arrays() | repeated)
