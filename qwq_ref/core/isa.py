"""Instruction sets: which the processor can run, and which one a call takes. Every one gives the same bits."""

from __future__ import annotations

import os

from ._ffi import CoreError, library, names

# Every instruction set of the core, the slowest first: csrc/dispatch.c has the list. Empty without the core.
ISAS = names("qwq_isa_name")
# What they need, by the names in /proc/cpuinfo; the last two are registers that an operating system saves or not.
FEATURES = names("qwq_feature_name")
_numbers: dict[str | None, int] = {}


def isas() -> list[str]:
    """Return the instruction sets that this processor can run, the best last."""
    lib = library()
    return [name for i, name in enumerate(ISAS) if lib.qwq_isa_supported(i)]


def features() -> list[str]:
    """Return those of FEATURES that the processor has and the operating system supports."""
    return _of(library().qwq_cpu_features())


def needs(isa: str) -> list[str]:
    """Return those of FEATURES that one of ISAS needs."""
    return _of(library().qwq_isa_needs(ISAS.index(isa)))


def chosen_isa(isa: str | None = None) -> str:
    """Return the instruction set that runs: `isa`, else the variable QWQ_ISA, else the best.

    Raises CoreError for one that cannot run here.
    """
    wanted = isa or os.environ.get("QWQ_ISA")
    have = isas()
    if not wanted:
        return have[-1]
    if wanted not in have:
        raise CoreError(None, "isa" if isa else "QWQ_ISA", f"{wanted[:40]} cannot run here; {', '.join(have)} can")
    return wanted


def isa_number(isa: str | None = None) -> int:
    """Return the number that C has for `chosen_isa(isa)`."""
    if isa not in _numbers:  # a set that was chosen once can run, and asking again takes a microsecond
        chosen = chosen_isa(isa)
        if not isa:  # another time, QWQ_ISA may be another
            return ISAS.index(chosen)
        _numbers[chosen] = ISAS.index(chosen)
    return _numbers[isa]


def _of(bits: int) -> list[str]:
    return [name for i, name in enumerate(FEATURES) if bits >> i & 1]
