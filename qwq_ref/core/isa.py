"""Instruction sets: which the processor can run, and which one a call takes. Every one gives the same bits."""

from __future__ import annotations

import os

from ._ffi import CoreError, library

ISAS = ("scalar", "avx2", "avx512")  # in the order of csrc/qwq.h
# Bits of csrc/qwq.h from the lowest, by their names in /proc/cpuinfo; the last two are registers that an operating
# system may keep or not.
FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni", "ymm", "zmm")


def isas() -> list[str]:
    """Return the instruction sets that this processor can run, the best last."""
    return [name for i, name in enumerate(ISAS) if library().qwq_isa_supported(i)]


def features() -> list[str]:
    """Return those of FEATURES that the processor has and the operating system supports."""
    return _names(library().qwq_cpu_features())


def needs(isa: str) -> list[str]:
    """Return those of FEATURES that one of ISAS needs."""
    return _names(library().qwq_isa_needs(ISAS.index(isa)))


def chosen_isa(isa: str | None = None) -> str:
    """Return the instruction set that runs: `isa`, else the variable QWQ_ISA, else the best.

    Raises CoreError for one that cannot run here.
    """
    wanted = isa or os.environ.get("QWQ_ISA")
    have = isas()
    if not wanted:
        return have[-1]
    if wanted not in have:
        raise CoreError(None, "isa", f"{wanted[:40]} cannot run here; {', '.join(have)} can")
    return wanted


def isa_number(isa: str | None = None) -> int:
    """Return the number that C has for `chosen_isa(isa)`."""
    return ISAS.index(chosen_isa(isa))


def _names(bits: int) -> list[str]:
    return [name for i, name in enumerate(FEATURES) if bits >> i & 1]
