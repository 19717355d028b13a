"""Calls of the C core that nobody should make: sizes, numbers and pointers at random, arrays between guard pages.

    python -m tests.tools.core_fuzz LOG [EXAMPLES [SEED]]

Every call must return: an error, with no output touched, or 0. Where one thing is wrong, the error is the one that
csrc/qwq.h names. A crash ends the process, and LOG holds the call that it was.
"""

import dataclasses
import faulthandler
import random
import sys

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from qwq_ref import core
from tests.support import core_calls, guards
from tests.support.core_calls import Struct

SIZES = {"T", "N", "K", "E", "D", "F", "H", "n", "k", "ld", "pos", "capacity"}
HUGE = [(1 << 30) + 1, 1 << 31, 1 << 32, (1 << 32) + 1, (1 << 60) + 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
INTS = [-(1 << 31), (1 << 31) - 1]
NUMBERS = [0.0, -1.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan")]
# Never right, of whatever format: name -> values, error.
WRONG = {
    "isa": ([-1, len(core.ISAS), *INTS], "EISA"),
    "threads": ([0, -1, 1025, 10**6, *INTS], "ESIZE"),
    "p_bits": ([4, 17, *INTS], "ESIZE"),
    "step": ([0, 3, *HUGE], "ESIZE"),
    "type": ([-1, core.lib.QWQ_BLOCK_TYPES, *INTS], "EFORMAT"),
    "layout": ([-1, core.lib.QWQ_WORD_LAYOUTS, *INTS], "EFORMAT"),
    "bits": ([-1, 0, 1, 9, *INTS], "EFORMAT"),
    "dtype": ([-1, 0, core.lib.QWQ_CODE_TYPES, *INTS], "EFORMAT"),
    "codes": ([-1, core.lib.QWQ_CODE_TYPES, *INTS], "EFORMAT"),
    "group": ([1, 17, 256, -64, *INTS], "EFORMAT"),
    "scales": ([-1, 6, *INTS], "EFORMAT"),
    "zero_point": ([-1, 256, *INTS], "EFORMAT"),
}
ROOM = 1 << 22  # for scratch, of which smaller sizes may want more


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that is done to a call, and the error that it must bring, if it is the only one; "" for any or none."""

    kind: str  # number, null, shift, onto
    name: str
    value: object
    error: str = ""


def changes(call):
    """All that can be done to it."""
    arrays = call.arrays()
    numbers = dict(call.arguments)
    for value in call.arguments.values():
        if isinstance(value, Struct):
            numbers |= value.fields
            numbers |= {
                f"{key}.{name}": number
                for key, inner in value.fields.items()
                if isinstance(inner, Struct) and inner.kind == "qwq_words"
                for name, number in inner.fields.items()
            }
            if value.kind != "qwq_fusion":
                yield Change("null", next(k for k, v in call.arguments.items() if v is value), None, "ENULL")
    for name, value in numbers.items():
        leaf = name.rpartition(".")[2]
        if leaf in WRONG and isinstance(value, int):
            values, error = WRONG[leaf]
            yield from (Change("number", name, wrong, error) for wrong in values)
        elif leaf in SIZES and isinstance(value, int):
            yield from (Change("number", name, wrong, "ESIZE") for wrong in HUGE)
            yield from (Change("number", name, wrong) for wrong in (0, 1) if wrong <= value)
        elif isinstance(value, float):
            yield from (Change("number", name, wrong) for wrong in NUMBERS)
    if "threads" in numbers:
        yield Change("number", "threads", 8)
    if "window" in numbers:
        yield from (Change("number", "window", wide) for wide in (0, 1, *HUGE))
    for name, array in arrays.items():
        yield Change("null", name, None, "ENULL" if array.needed else "")
        if array.align > 1:
            yield Change("shift", name, 1, "EALIGN")
    for name, array in arrays.items():
        if array.role != "in":
            for other in arrays:
                allowed = (name, other) in call.aliases
                if other != name and (not allowed or arrays[other].data.nbytes == array.data.nbytes):
                    yield Change("onto", name, other, "" if allowed else "EOVERLAP")


def changed(call, name, value):
    """The call with one of its numbers or pointers, or of a struct's, in another's place."""
    arguments = dict(call.arguments)
    if name in arguments:
        arguments[name] = value
    else:
        for key, struct in arguments.items():
            inner = name.removeprefix(f"{key}.")
            if isinstance(struct, Struct) and inner.partition(".")[0].partition("[")[0] in struct.fields:
                arguments[key] = struct.changed(inner, value)
    return dataclasses.replace(call, arguments=arguments)


def calls():
    """Of every entry point, some on each instruction set."""
    n, have = 0, core.isas()
    for i, tail in enumerate((1, 17, 65)):
        for call in core_calls.every(i, (tail,), core_calls.FORMATS[i::3]):
            n += 1
            yield changed(call, "isa", core.ISAS.index(have[n % len(have)]))


def attempt(call, chosen, side, log):
    for name, array in call.arrays().items():
        if array.role == "scratch":
            call = changed(call, name, dataclasses.replace(array, data=np.full(array.data.size + ROOM, 0xFF, np.uint8)))
    placed = guards.place(call, side)
    addresses = {name: p.address for name, p in placed.items()}
    before = {name: p.bytes.copy() for name, p in placed.items()}
    wanted = chosen[0].error if len(chosen) == 1 else ""
    for change in chosen:
        if change.kind in ("number", "null"):
            call = changed(call, change.name, change.value)
        elif change.kind == "shift":
            addresses[change.name] += change.value
        else:
            addresses[change.name] = addresses[change.value]
            if len(chosen) == 1 and addresses[change.name] % call.arrays()[change.name].align:
                wanted = "EALIGN"
    what = f"{call} {chosen} {side}"
    log.seek(0)
    log.write(what)
    log.truncate()
    log.flush()
    code = call.run(addresses)
    if wanted:
        assert code == getattr(core.lib, f"QWQ_{wanted}"), (code, what)
    assert code <= 0, what
    for name, p in placed.items():
        assert p.poison_is_whole(), (name, what)
        computed = code == core.lib.QWQ_ERANGE and name == "scratch"  # what is out of range must be computed first
        if code < 0 and not computed:
            assert np.array_equal(p.bytes, before[name]), (name, what)
        p.free()


def main(path, examples="500", start="0"):
    faulthandler.enable()
    made = list(calls())
    everything = [list(changes(call)) for call in made]
    with open(path, "w") as log:

        def one(n, picks, side):
            possible, chosen = everything[n % len(made)], []
            for pick in picks:  # one of a thing: what follows from the other is not known
                change = possible[pick % len(possible)]
                one_pointer = change.kind == "number" or all(c.kind == "number" for c in chosen)
                if one_pointer and change.name not in {c.name for c in chosen}:
                    chosen.append(change)
            attempt(made[n % len(made)], chosen, side, log)

        big = st.integers(0, 1 << 20)
        fuzz = given(big, st.lists(big, min_size=1, max_size=4), st.sampled_from(["left", "right"]))(one)
        checks = [HealthCheck.too_slow, HealthCheck.differing_executors]
        fuzz = settings(max_examples=int(examples), deadline=None, database=None, suppress_health_check=checks)(fuzz)
        seed(int(start))(fuzz)()
        # And each single change of each entry point once.
        singles = [(call, change) for call, some in zip(made, everything, strict=True) for change in some]
        random.Random(int(start)).shuffle(singles)
        once = {(call.function, str(change)): (call, change) for call, change in singles}
        for call, change in once.values():
            attempt(call, [change], "right", log)


if __name__ == "__main__":
    main(*sys.argv[1:])
