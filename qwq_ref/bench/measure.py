"""Measurements in turns with the ceilings of the machine.

In each repeat the ceilings are measured first and then the operation. So other work on the machine slows down both,
and the ratio of the two stays meaningful.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from .. import core
from ..core import ceilings
from ..host.cpu import processors
from ..host.memory import peak_bytes

ROTATION = 256 << 20  # least number of bytes that are read before the first of them is read again


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = perf_counter()
    call()
    return perf_counter() - start


def _silent(what: str, part: float) -> None:
    """Show nothing."""


@dataclass
class Ceilings:
    """Measures the ceilings, and keeps all results: {(instructions or order, isa, threads): rates per second}.

    told  called with the words for each measurement that begins, and the part of its row that is done
    """

    rotation: int = 0
    told: Callable[[str, float], object] = _silent
    peaks: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)
    reads: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.best_isa = core.isas()[-1]  # reading is the same for all
        self._seconds: dict[tuple[str, str], float] = {}  # seconds of a round
        self._orders: dict[int, str] = {}
        size = self.rotation or rotation()
        self.data = core.aligned(size)
        self.data[:] = 1  # untouched pages would all be the same page

    def peak(self, which: str, isa: str, threads: int, seconds: float) -> float | None:
        """Measure multiply-accumulates per second over about `seconds`; return None if there is no such ceiling."""
        products = ceilings.products(which, isa)
        if not products:
            return None
        key = (which, isa)
        if key not in self._seconds:  # on one thread, which other work on the machine disturbs the least
            some = 20_000
            self._seconds[key] = min(timed(lambda: ceilings.peak(which, some, isa)) for _ in range(5)) / some
        rounds = max(1, int(seconds / self._seconds[key]))
        rate = products * rounds * threads / timed(lambda: ceilings.peak(which, rounds, isa, threads))
        name = (ceilings.instructions(which, isa), isa, threads)
        self.peaks.setdefault(name, []).append(rate)
        return rate

    def read(self, threads: int, seconds: float) -> float:
        """Measure bytes read per second over at least `seconds`, in the order that was the fastest at first."""
        part = len(self.data) // (256 * threads) * 256 * threads
        data, isa = self.data[:part], self.best_isa
        if threads not in self._orders:
            best = {}
            for order in ceilings.ORDERS:
                read = functools.partial(ceilings.read, data, order, isa, threads)
                best[order] = min(timed(read) for _ in range(3))
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
        """Return the medians over the whole run."""
        kinds = ((self.peaks, "MAC"), (self.reads, "byte"))
        return [
            {"name": name if unit == "MAC" else f"read, {name}", "isa": isa, "threads": threads, "unit": unit,
             "per_second": median(rates), "samples": len(rates)}
            for measured, unit in kinds
            for (name, isa, threads), rates in measured.items()
        ]  # fmt: skip


@dataclass
class Turns:
    """The results of `in_turns`; each list has an entry a repeat.

    peaks  name of core.ceilings.PEAKS -> multiply-accumulates per second; empty if there is no such ceiling
    reads  bytes read from memory per second
    times  the seconds of each runner
    """

    peaks: dict[str, list[float]]
    reads: list[float]
    times: list[list[float]]


def in_turns(
    runners: Sequence[Callable[[], float]],
    best: Ceilings,
    peaks: Sequence[str],
    isa: str,
    threads: int,
    repeats: int,
    span: float,
    enough: Callable[[Turns], bool] = lambda turns: False,
    name: str = "",
) -> Turns:
    """Measure in each repeat the peaks, reading, and then each runner once.

    runners  each measures something and returns seconds
    span     seconds over which a ceiling is measured
    enough   ends the measurement after the first repeat for which it is true
    name     what is measured, in the words for `best.told`
    """
    turns = Turns({which: [] for which in peaks}, [], [[] for _ in runners])
    while len(turns.reads) < repeats and not (turns.reads and enough(turns)):
        best.told(f"{name}, repeat {len(turns.reads) + 1} of {repeats}", len(turns.reads) / repeats)
        for which, rates in turns.peaks.items():
            rate = best.peak(which, isa, threads, span)
            rates.extend([] if rate is None else [rate])
        turns.reads.append(best.read(threads, span))
        for runner, times in zip(runners, turns.times, strict=True):
            times.append(runner())
    return turns


# --- The machine ---------------------------------------------------------------------------------------------------


def rotation() -> int:
    """Return a number of bytes that all last caches together do not hold."""
    return max(ROTATION, 4 * (processors().last_caches or last_cache_bytes()))


def last_cache_bytes() -> int:
    """Return the bytes of the largest cache of a CPU, or 32 MiB if the system does not tell."""
    return processors().last_cache or 32 << 20


def huge_pages(data: core.Array) -> float | None:
    """Return the share of an array's memory on huge pages, or None if the system does not tell."""
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
    """Return facts about the machine on which the figures depend."""
    return {
        "cpu": processors().model,
        "isas": core.isas(),
        "last_cache_bytes": last_cache_bytes(),
        "huge_pages": huge_pages(best.data),
        "peak_bytes": peak_bytes(),
    }
