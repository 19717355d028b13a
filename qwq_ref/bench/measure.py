"""Medians of an operation's time, in turns with the ceilings that it is compared with.

Time is Python's perf_counter around calls of the core's wrappers: some 10 us a call are theirs. In each repeat the
ceilings are measured first and then the operation, so that what slows down the machine slows down both.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from .. import core
from ..core import ceilings
from ..errors import UsageError
from ..host.cpu import processors
from ..host.memory import peak_bytes
from .ops import Op, Shape, copies_for

ROTATION = 256 << 20  # bytes that are read at least before the first of them is read again
SHORTEST = 0.010  # seconds of a repeat: shorter calls are repeated within it
SLOW = 2.0  # a call that takes longer has no warm-up
LONGEST = 20.0  # seconds that one row may take, but for its first call


@dataclass(frozen=True)
class Row:
    """One operation at one size. Times in seconds; nothing is rounded.

    shape, dims   its name, and its numbers
    samples       of a call, one for each repeat, of which `seconds` is the median
    calls         that a sample is the mean of
    copies        of the data, that calls take in turns
    cached        whether all of them fit the last cache, so that memory is no limit
    peak, read    ceilings per second, medians of the same repeats: of operations, None where there is none; of bytes
    peak_samples, read_samples  what these are medians of
    ceiling       the one that binds, that is, would take longer; None where it is not known
    share         of that ceiling
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


@dataclass
class Ceilings:
    """Measures them, and keeps all that was measured: {(instructions or order, isa, threads): per second}."""

    rotation: int = 0
    peaks: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)
    reads: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.best_isa = core.isas()[-1]  # memory is the same for all
        self._seconds: dict[tuple[str, str], float] = {}  # of a round
        self._orders: dict[int, str] = {}
        size = self.rotation or rotation()
        self.data = core.aligned(size)
        self.data[:] = 1  # pages that nothing was written to are all the same one

    def peak(self, which: str, isa: str, threads: int, seconds: float) -> float | None:
        """Multiply-accumulates per second, now, over about so many seconds; None where there is no such ceiling."""
        products = ceilings.products(which, isa)
        if not products:
            return None
        key = (which, isa)
        if key not in self._seconds:  # on one thread, which other work on the machine makes wait the least
            some = 20_000
            self._seconds[key] = min(_timed(lambda: ceilings.peak(which, some, isa)) for _ in range(5)) / some
        rounds = max(1, int(seconds / self._seconds[key]))
        rate = products * rounds * threads / _timed(lambda: ceilings.peak(which, rounds, isa, threads))
        name = (ceilings.instructions(which, isa), isa, threads)
        self.peaks.setdefault(name, []).append(rate)
        return rate

    def read(self, threads: int, seconds: float) -> float:
        """Bytes per second, now, over so many seconds or more, in the order that was the fastest when first asked."""
        part = len(self.data) // (256 * threads) * 256 * threads
        data, isa = self.data[:part], self.best_isa
        if threads not in self._orders:
            best = {}
            for order in ceilings.ORDERS:
                read = functools.partial(ceilings.read, data, order, isa, threads)
                best[order] = min(_timed(read) for _ in range(3))
            self._orders[threads] = min(best, key=lambda order: best[order])
        order = self._orders[threads]
        start, times = perf_counter(), 0
        while (taken := perf_counter() - start) < seconds or not times:
            ceilings.read(data, order, isa, threads)
            times += 1
        rate = times * part / taken
        self.reads.setdefault((order, isa, threads), []).append(rate)
        return rate

    def to_list(self) -> list[dict[str, Any]]:
        """Medians over the whole run."""
        kinds = ((self.peaks, "MAC"), (self.reads, "byte"))
        return [
            {"name": name if unit == "MAC" else f"read, {name}", "isa": isa, "threads": threads, "unit": unit,
             "per_second": median(rates), "samples": len(rates)}
            for measured, unit in kinds
            for (name, isa, threads), rates in measured.items()
        ]  # fmt: skip


def rows(
    plan: list[tuple[Op, str, Shape]],
    tokens: list[int],
    isas: list[str],
    threads: list[int],
    repeats: int,
    ceilings_: Ceilings,
) -> Iterator[Row]:
    """Measure each operation of a plan at all T, on all instruction sets and numbers of threads."""
    for op, name, shape in plan:
        held = op.work(shape, 1).held
        copies = copies_for(held, len(ceilings_.data), f"{op.name} {name}")
        data = op.prepare(shape, copies)
        for T in tokens if op.tokens else [1]:
            if op.letters == "S" and shape[0] < T:
                raise UsageError(None, "tokens", f"{T} do not fit a context of {shape[0]}")
            call = op.bind(data, shape, T)
            for isa, n in itertools.product(isas, threads if op.threaded else [1]):
                turns = itertools.cycle(range(len(data)))
                yield _row(op, name, shape, T, isa, n, len(data), lambda: call(next(turns), isa, n), repeats, ceilings_)  # noqa: B023
        del data


def count(plan: list[tuple[Op, str, Shape]], tokens: list[int], isas: list[str], threads: list[int]) -> int:
    """How many rows there will be."""
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
    first = _timed(once)
    samples = [first] if first > SLOW else []
    shortest = first if samples else min(first, _timed(once))
    calls = max(1, int(SHORTEST / shortest) + 1) if shortest < SHORTEST else 1
    # Ceilings see as much of what else the machine does as the operation, unless that takes long.
    span = min(max(SHORTEST, shortest), LONGEST / 200)
    peaks: list[float] = []
    reads: list[float] = []
    while len(reads) < repeats and (not reads or sum(samples) * calls < LONGEST):
        if op.peak is not None and (peak := best.peak(op.peak, isa, threads, span)) is not None:
            peaks.append(peak)
        reads.append(best.read(threads, span))
        if len(samples) < repeats and sum(samples) * calls < LONGEST:
            samples.append(_timed(lambda: [once() for _ in range(calls)]) / calls)
    seconds, work = median(samples), op.work(shape, T)
    cached = (copies - 1) * work.held + work.bytes < 2 * last_cache_bytes()
    limits: dict[str, float] = {}  # ceiling -> the seconds that it would take
    if op.peak is None or peaks:  # of what has an unknown ceiling, the other one need not bind
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


def _timed(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


# --- The machine ---------------------------------------------------------------------------------------------------


def rotation() -> int:
    """Bytes that no cache holds, nor all of them together where there are several last ones."""
    return max(ROTATION, 4 * (processors().last_caches or last_cache_bytes()))


def last_cache_bytes() -> int:
    """The largest cache of a CPU; 32 MiB where the system does not say."""
    return processors().last_cache or 32 << 20


def huge_pages(data: core.Array) -> float | None:
    """The share of an array's memory that is on huge pages; None where the system does not say."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return None
    address, mapping = data.ctypes.data + data.nbytes // 2, (0, 0)  # the first page is a mapping of its own
    for line in lines:
        head = line.split(maxsplit=1)[0]
        if "-" in head and not head.endswith(":"):
            start, _, end = head.partition("-")
            mapping = (int(start, 16), int(end, 16))
        elif head == "AnonHugePages:" and mapping[0] <= address < mapping[1]:
            return int(line.split()[1]) * 1024 / (mapping[1] - mapping[0])
    return None


def machine(best: Ceilings) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": processors().model,
        "isas": core.isas(),
        "last_cache_bytes": last_cache_bytes(),
        "huge_pages": huge_pages(best.data),
        "peak_bytes": peak_bytes(),
    }
