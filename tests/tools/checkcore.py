"""Check every function of every rung of the C core against scalar code, and time it.

    python -m tests.tools.checkcore                                  # all rungs that this processor can run
    python -m tests.tools.checkcore --bench --function wide
    python -m tests.tools.checkcore --isa avx512 --function attention --seeds 100

The functions come from the dispatch tables themselves. Each runs on random inputs between guard pages, which begin or
end at a page without access; its results must equal those of scalar code to the bit. A line is one function of one
rung: OK, or FAILED with the seed. An inherited function is checked too, and its line names the rung that it is from.
The exit status is 1 if a check failed. A crash ends the process; the last line then names the function.

--bench adds the mean time of a call, of which Python takes some 0.3 us, and how many times as long scalar code takes.
"""

import argparse
import faulthandler
import sys
import time
from types import SimpleNamespace

import numpy as np

from qwq_ref import core
from tests.support import kernel_tables
from tests.support.guards import Guarded
from tests.support.kernel_checks import CHECKS
from tests.support.kernel_tables import ffi

PARTS = [name for name, _ in ffi.typeof("qwq_table").fields]
TYPES = {
    "f4": "float",
    "i4": "int32_t",
    "u4": "uint32_t",
    "i1": "int8_t",
    "u1": "uint8_t",
    "i2": "int16_t",
    "u2": "uint16_t",
}


class Memory:
    """Copies of arrays between guard pages."""

    def __init__(self, side):
        self.side, self.placed = side, []

    def __call__(self, array):
        array = np.ascontiguousarray(array)
        guarded = Guarded(array, self.side)
        self.placed.append(guarded)
        copy = guarded.bytes.view(array.dtype).reshape(array.shape)
        return ffi.cast(f"{TYPES[array.dtype.str[1:]]} *", guarded.address), copy

    def is_whole(self):
        return all(guarded.poison_is_whole() for guarded in self.placed)

    def free(self):
        for guarded in self.placed:
            guarded.free()


def results(run, isa, side):
    """What a run computes on a rung, as bytes; None if it wrote beside an array."""
    memory = Memory(side)
    found = [np.ascontiguousarray(array).tobytes() for array in run(kernel_tables.table(isa), memory)]
    whole = memory.is_whole()
    memory.free()
    return found if whole else None


def runs(entry, seed):
    check = CHECKS.get((entry.part, entry.field))
    if check is None:
        raise SystemExit(f"{entry}: tests/support/kernel_checks.py has no check for this function")
    return list(check(np.random.default_rng(seed), entry))


def failure(entry, isa, seeds):
    """The first seed whose results differ from scalar code, and how; "" if there is none."""
    for seed in seeds:
        for number, run in enumerate(runs(entry, seed)):
            wanted = results(run, "scalar", "right")
            for side in ("right", "left"):
                found = results(run, isa, side)
                if found is None:
                    return f"seed {seed}, run {number}: wrote beside an array"
                if found != wanted:
                    return f"seed {seed}, run {number}: results differ"
    return ""


class Timed:
    """A dispatch table in which calls of one entry are repeated and timed: the shortest time of each."""

    def __init__(self, table, entry):
        self.seconds, self._parts = [], {part: getattr(table, part) for part in PARTS}
        function = entry.of(table)
        if function == ffi.NULL:
            return
        part = self._parts[entry.part]
        fields = {name: getattr(part, name) for name, _ in ffi.typeof(part).fields}
        if not entry.index:
            fields[entry.field] = self._timed(function)
        elif entry.field == "peak":
            timed = SimpleNamespace(run=self._timed(function))
            fields["peak"] = [timed if peak.run == function else peak for peak in fields["peak"]]
        else:
            array = fields[entry.field]
            place = list(core.CODES).index(entry.index)
            fields[entry.field] = [self._timed(f) if i == place else f for i, f in enumerate(array)]
        self._parts[entry.part] = SimpleNamespace(**fields)

    def __getattr__(self, part):
        return self._parts[part]

    def _timed(self, function):
        def call(*arguments):
            result, shortest = function(*arguments), float("inf")
            for _ in range(20):
                start = time.perf_counter()
                for _ in range(10):
                    function(*arguments)
                shortest = min(shortest, (time.perf_counter() - start) / 10)
            self.seconds.append(shortest)
            return result

        return call


def seconds(entry, isa):
    """The time of a call of an entry: the mean over its runs of the first seed, 0 if the rung has no such function."""
    memory, timed = Memory("left"), Timed(kernel_tables.table(isa), entry)
    for run in runs(entry, 0):
        run(timed, memory)
    memory.free()
    return sum(timed.seconds) / max(1, len(timed.seconds))


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="checkcore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", choices=core.ISAS, help="one rung; default: all that can run here")
    parser.add_argument("--function", metavar="TEXT", default="", help="only functions whose name contains this")
    parser.add_argument("--seeds", type=int, default=10, help="default: 10")
    parser.add_argument("--bench", action="store_true", help="time each function")
    options = parser.parse_args(arguments)
    faulthandler.enable()
    can_run, failed, checked = core.isas(), 0, 0
    for isa in core.ISAS if options.isa is None else (options.isa,):
        if isa not in can_run:
            lacks = sorted(set(core.needs(isa)) - set(core.features()))
            print(f"{isa} cannot run here: the processor lacks {', '.join(lacks)}")
            failed += options.isa is not None
            continue
        for entry in kernel_tables.entries():
            if options.function not in str(entry) or entry.of(kernel_tables.table(isa)) == ffi.NULL:
                continue
            owner = kernel_tables.owner(entry, isa)
            print(f"{entry!s:<28}{isa:<13}", end="", flush=True)
            problem = failure(entry, isa, range(options.seeds))
            line = f"FAILED  {problem}" if problem else "OK"
            if options.bench and not problem:
                own, scalar = seconds(entry, isa), seconds(entry, "scalar")
                line += f"{1e6 * own:12.2f} us" + (f"{scalar / own:8.1f} x" if scalar else " " * 10)
            print(line + (f"  (from {owner})" if owner != isa else ""), flush=True)
            failed += bool(problem)
            checked += 1
    print(f"{checked} functions checked, {failed} failed" if checked else "there is no such function")
    return int(failed > 0 or not checked)


if __name__ == "__main__":
    sys.exit(main())
