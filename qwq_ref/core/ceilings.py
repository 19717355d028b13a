"""What the processor can do at best, by the instructions that the kernels use: what `qwq bench` compares with."""

from __future__ import annotations

from ._ffi import Array, CoreError, at, check, library
from .isa import chosen_isa, isa_number

# csrc/qwq.h has them by number.
PEAKS = ("dots-31", "dots-63", "dots-127", "dots-signed", "dots-words", "floats")
ORDERS = ("one stream", "fetched ahead", "four streams")  # of reading; which is fastest depends on the processor

_AVX2 = {
    "dots-31": "4 vpmaddubsw + vpmaddwd",
    "dots-63": "2 vpmaddubsw + vpmaddwd",
    "dots-127": "vpmaddubsw + vpmaddwd",
    "dots-signed": "vpsignb + vpmaddubsw + vpmaddwd",
    "dots-words": "vpmaddwd",
    "floats": "vmulps + vaddps",
}


def instructions(which: str, isa: str | None = None) -> str:
    """What a ceiling consists of, in instructions that multiply."""
    if chosen_isa(isa) == "avx512" and which != "floats":
        return "vpdpbusd"
    return _AVX2[which]


def products(which: str, isa: str | None = None) -> int:
    """Multiply-accumulates in one round of `peak`; 0 where there is no such ceiling, as for scalar code."""
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
