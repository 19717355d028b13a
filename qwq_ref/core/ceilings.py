"""Ceilings: the best that the processor can do with the instructions that the kernels use."""

from __future__ import annotations

from ._ffi import Array, CoreError, at, check, ffi, library
from .isa import isa_number

# In the order of the enumerations of csrc/qwq.h.
PEAKS = ("dots-31", "dots-63", "dots-127", "dots-words", "floats")
ORDERS = ("one stream", "fetched ahead", "four streams")  # of reading; which is fastest depends on the processor


def instructions(which: str, isa: str | None = None) -> str:
    """Return the instructions that multiply in a ceiling; empty where there is no such ceiling."""
    text = library().qwq_peak_instructions(_number(which, PEAKS), isa_number(isa))
    return "" if text == ffi.NULL else str(ffi.string(text).decode())


def products(which: str, isa: str | None = None) -> int:
    """Return the multiply-accumulates of one round of `peak`; 0 where there is no such ceiling, as for scalar code."""
    return int(library().qwq_peak_products(_number(which, PEAKS), isa_number(isa)))


def peak(which: str, rounds: int, isa: str | None = None, threads: int = 1) -> None:
    """Compute so many rounds on each thread."""
    check(library().qwq_peak(_number(which, PEAKS), rounds, isa_number(isa), threads))


def read(data: Array, order: str, isa: str | None = None, threads: int = 1) -> None:
    """Read uint8 data once, each thread its part: a multiple of 256 bytes."""
    check(library().qwq_read(at(data), len(data), _number(order, ORDERS), isa_number(isa), threads))


def _number(name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        raise CoreError(None, "ceiling", f"must be one of {', '.join(names)}, got {name[:40]}")
    return names.index(name)
