"""The dispatch tables of the core, as Python sees them: one for each rung, read from the headers of csrc/."""

import re
from dataclasses import dataclass
from typing import Any

from cffi import FFI

from qwq_ref import core
from qwq_ref.core.ceilings import PEAKS
from tests.support.paths import ROOT

_HEADERS = ("qwq.h", *(f"common/{name}.h" for name in ("kernels", "attention", "ops", "ceilings", "table")))


def _declarations():
    for name in _HEADERS:
        text = (ROOT / "csrc" / name).read_text()
        yield from re.findall(r"/\* <cdef> \*/(.*?)/\* </cdef> \*/", text, re.DOTALL)


ffi = FFI()
ffi.cdef("\n".join(_declarations()))


@dataclass(frozen=True)
class Entry:
    """One function of every table.

    part   "matmul", "attention", "ops" or "ceilings"
    field  the name of the function, or of an array of functions
    index  in that array, by name: a type of codes, or a ceiling; "" for a single function
    """

    part: str
    field: str
    index: str = ""

    def __str__(self):
        return f"{self.part}.{self.field}" + (f"[{self.index}]" if self.index else "")

    def of(self, table):
        """The function in a table, or NULL."""
        found = getattr(getattr(table, self.part), self.field)
        if not self.index:
            return found
        return found[PEAKS.index(self.index)].run if self.field == "peak" else found[list(core.CODES).index(self.index)]


def table(isa):
    """The table of an instruction set by name."""
    address = core.lib.qwq_isa_table(core.ISAS.index(isa))
    return ffi.cast("qwq_table *", int(core.ffi.cast("intptr_t", address)))


def entries():
    """Every function that a table has room for, from the declaration of the table itself."""
    for part, of_part in ffi.typeof("qwq_table").fields:
        for field, of_field in of_part.type.fields:
            kind = of_field.type
            if kind.kind == "pointer" and kind.item.kind == "function":
                kind = kind.item
            if kind.kind == "function":
                yield Entry(part, field)
            elif kind.kind == "array" and kind.item.kind != "primitive":
                names = PEAKS if field == "peak" else tuple(core.CODES)
                assert len(names) == kind.length, (part, field)
                yield from (Entry(part, field, name) for name in names)


def owner(entry, isa):
    """The lowest rung whose function this is: the rung itself, or the one that it inherits the function from."""
    function = entry.of(table(isa))
    below = core.ISAS[: core.ISAS.index(isa) + 1]
    return next(name for name in below if entry.of(table(name)) == function)


def layout_of(form) -> Any:
    """The layout of a format (codes, group, scales, zero_point)."""
    from qwq_ref.core.formats import c_format

    layout = ffi.new("qwq_layout *")
    assert core.lib.qwq_format_layout(core.ffi.cast("void *", int(ffi.cast("intptr_t", layout))), c_format(form))
    return layout
