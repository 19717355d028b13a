"""Measure operations, each beside its ceilings.

Time is Python's perf_counter around calls of the core's wrappers, which take about 10 us of each call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..core import ceilings
from ..errors import UsageError
from . import measure
from .measure import Ceilings, timed
from .ops import Op, Shape, copies_for

SHORTEST = 0.010  # seconds of a repeat: shorter calls are repeated within it
SLOW = 2.0  # a call that takes longer has no warm-up
LONGEST = 20.0  # seconds that one row may take, without its first call


@dataclass(frozen=True)
class Row:
    """One operation at one size. Times are in seconds; nothing is rounded.

    shape, dims   the name of the shape, and its numbers
    samples       seconds of a call, one a repeat; `seconds` is their median
    calls         the number of calls whose mean is a sample
    copies        the number of copies of the data that calls take in turns
    cached        whether all copies fit the last cache, so that memory is no limit
    peak          operations per second that the processor allows, None where there is no such ceiling
    read          bytes per second from memory
    peak_samples, read_samples  the samples of the same repeats; peak and read are their medians
    ceiling       the ceiling that binds: the one that would take longer; None where it is not known
    share         the share of that ceiling that is reached
    """

    op: str
    shape: str
    dims: list[int]
    T: int | None
    isa: str
    threads: int
    seconds: float
    samples: list[float]
    calls: int
    copies: int
    cached: bool
    unit: str
    operations: int
    operations_per_second: float
    bytes: int
    bytes_per_second: float
    peak: float | None
    read: float
    peak_samples: list[float]
    read_samples: list[float]
    ceiling: str | None
    share: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def rows(
    plan: list[tuple[Op, str, Shape]],
    tokens: list[int],
    isas: list[str],
    threads: list[int],
    repeats: int,
    best: Ceilings,
) -> Iterator[Row]:
    """Measure each operation of a plan at all T, on all instruction sets and numbers of threads."""
    for op, name, shape in plan:
        held = op.work(shape, 1).held
        copies = copies_for(held, len(best.data), f"{op.name} {name}")
        data = op.prepare(shape, copies)
        for T in tokens if op.tokens else [1]:
            if op.letters == "S" and shape[0] < T:
                raise UsageError(None, "tokens", f"{T} do not fit a context of {shape[0]}")
            call = op.bind(data, shape, T)
            for isa, n in itertools.product(isas, threads if op.threaded else [1]):
                turns = itertools.cycle(range(len(data)))
                yield _row(op, name, shape, T, isa, n, len(data), lambda: call(next(turns), isa, n), repeats, best)  # noqa: B023
        del data


def row_count(plan: list[tuple[Op, str, Shape]], tokens: list[int], isas: list[str], threads: list[int]) -> int:
    """Return the number of rows that `rows` yields."""
    return sum(
        (len(tokens) if op.tokens else 1) * len(isas) * (len(threads) if op.threaded else 1) for op, _, _ in plan
    )


def _row(
    op: Op,
    name: str,
    shape: Shape,
    T: int,
    isa: str,
    threads: int,
    copies: int,
    once: Callable[[], object],
    repeats: int,
    best: Ceilings,
) -> Row:
    title = f"{op.name} {name}" + (f", T={T}" if op.tokens else "")
    best.told(f"{title}, warm-up", 0)
    first = timed(once)
    waiting = [first] if first > SLOW else []  # a slow first call counts as a sample
    shortest = first if waiting else min(first, timed(once))
    calls = max(1, int(SHORTEST / shortest) + 1) if shortest < SHORTEST else 1

    def sample() -> float:
        return waiting.pop() if waiting else timed(lambda: [once() for _ in range(calls)]) / calls

    turns = measure.in_turns(
        [sample],
        best,
        [] if op.peak is None else [op.peak],
        isa,
        threads,
        repeats,
        # Ceilings are measured as long as the operation, unless that takes long: other work disturbs both alike.
        span=min(max(SHORTEST, shortest), LONGEST / 200),
        enough=lambda turns: sum(turns.times[0]) * calls >= LONGEST,
        name=title,
    )
    (samples,), reads = turns.times, turns.reads
    peaks = [] if op.peak is None else turns.peaks[op.peak]
    seconds, work = median(samples), op.work(shape, T)
    cached = (copies - 1) * work.held + work.bytes < 2 * measure.last_cache_bytes()
    limits: dict[str, float] = {}  # ceiling -> the seconds that it would take
    if op.peak is None or peaks:  # if one of two ceilings is unknown, the other need not bind
        if op.peak is not None:
            limits[ceilings.instructions(op.peak, isa)] = work.operations / median(peaks)
        if not cached:
            limits["read"] = work.bytes / median(reads)
    ceiling = max(limits, key=lambda name: limits[name]) if limits else None
    return Row(
        op=op.name,
        shape=name,
        dims=list(shape),
        T=T if op.tokens else None,
        isa=isa,
        threads=threads,
        seconds=seconds,
        samples=samples,
        calls=calls,
        copies=copies,
        cached=cached,
        unit=op.unit,
        operations=work.operations,
        operations_per_second=work.operations / seconds,
        bytes=work.bytes,
        bytes_per_second=work.bytes / seconds,
        peak=median(peaks) if peaks else None,
        read=median(reads),
        peak_samples=peaks,
        read_samples=reads,
        ceiling=ceiling,
        share=limits[ceiling] / seconds if ceiling is not None else None,
    )
