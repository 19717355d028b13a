"""Memory that ends, or begins, at a page that nobody may touch.

    python -m tests.support.guards ISA right|left [SEED]

runs every entry point of the core with every array placed so, and compares results with those in ordinary memory, of
scalar code. One byte too far ends the process: tests run this in one of its own.
"""

import ctypes
import faulthandler
import mmap
import sys

import numpy as np

from qwq_ref import core
from tests.support import core_calls

PAGE = mmap.PAGESIZE
POISON = 0xFF  # floats of these bytes are NaN

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Guarded:
    """A copy of an array, the rest of its pages poisoned, between two pages without access."""

    def __init__(self, data, side):
        self.nbytes = data.nbytes
        self.inner = -(-max(data.nbytes, 1) // PAGE) * PAGE
        self.base = _libc.mmap(
            None, self.inner + 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
        )
        assert self.base not in (None, ctypes.c_void_p(-1).value), "no memory"
        self.pages = np.ctypeslib.as_array((ctypes.c_uint8 * self.inner).from_address(self.base + PAGE))
        self.pages[:] = POISON
        self.start = 0 if side == "left" else self.inner - data.nbytes
        self.address = self.base + PAGE + self.start
        self.bytes = self.pages[self.start : self.start + data.nbytes]
        self.bytes[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        for guard in (self.base, self.base + PAGE + self.inner):
            assert _libc.mprotect(guard, PAGE, 0) == 0

    def poison_is_whole(self):
        end = self.start + self.nbytes
        return bool((self.pages[: self.start] == POISON).all() and (self.pages[end:] == POISON).all())

    def free(self):
        assert _libc.munmap(self.base, self.inner + 2 * PAGE) == 0


def place(call, side):
    placed = {name: Guarded(a.data, side) for name, a in call.arrays().items()}
    for name, a in call.arrays().items():  # a test that placed them elsewhere would test something else
        assert placed[name].address % a.align == 0, (call.function, name)
    return placed


def check(call, isa, side):
    wanted = call.results()
    if "isa" in call.arguments:
        call.arguments["isa"] = isa
    placed = place(call, side)
    code = call.run({name: p.address for name, p in placed.items()})
    assert code == 0, f"{call.function} returned {code}"
    for name, array in call.arrays().items():
        assert placed[name].poison_is_whole(), f"{call.function} wrote beside {name}"
        if array.role != "scratch":
            result = wanted.get(name, array.data)
            assert np.array_equal(placed[name].bytes, result.reshape(-1).view(np.uint8)), f"{call.function}: {name}"
    for p in placed.values():
        p.free()


def main(isa, side, seed="0"):
    faulthandler.enable()
    covered = set()
    for call in core_calls.every(int(seed)):
        covered.add(call.function)
        print(call, flush=True)  # the last line says what died
        check(call, core.ISAS.index(isa), side)
    missing = {name for name in dir(core.lib) if name.startswith("qwq_")} - covered - core_calls.EXEMPT
    assert not missing, f"never called: {sorted(missing)}"


if __name__ == "__main__":
    main(*sys.argv[1:])
