"""The energy that this machine uses: joules from the processor's own counters, or from the watts of a meter.

Linux shows the counters of Intel's and AMD's processors (RAPL) in /sys/class/powercap, with one folder a domain:
https://docs.kernel.org/power/powercap/powercap.html. A package is all that one socket, or one of its dies, uses: cores,
caches, and the controllers of memory. Its parts (intel-rapl:0:0) are within it, and so is a package within psys.
Counters run on while the machine is idle, and count all programs.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

from .system import ROOT, read

_POWERCAP = Path("sys/class/powercap")
_DOMAIN = re.compile(r"intel-rapl:\d+")  # not its parts, and not intel-rapl-mmio, a second path to the same counters
_SECONDS = 30.0  # between two readings: a counter of 65 kJ wraps within a minute at 1,000 W
_ADVICE = "--watts takes a meter's reading"


@dataclass(frozen=True)
class Energy:
    """joules, and the seconds in which they were used."""

    joules: float
    seconds: float

    def __sub__(self, earlier: Energy) -> Energy:
        return Energy(self.joules - earlier.joules, self.seconds - earlier.seconds)


class Meter(Protocol):
    """Counts energy from when it was made.

    source  where its joules come from, for people
    """

    source: str

    def total(self) -> Energy | None:
        """Return the energy used so far; None once a counter could not be read."""

    def close(self) -> None:
        """End the count."""


class Given:
    """Watts that the user read from a meter, times seconds."""

    def __init__(self, watts: float) -> None:
        self.source = f"{watts:g} W of --watts times seconds"
        self._watts, self._started = watts, perf_counter()

    def total(self) -> Energy:
        seconds = perf_counter() - self._started
        return Energy(self._watts * seconds, seconds)

    def close(self) -> None:
        pass


class _UnreadableError(Exception):
    """A file of a counter that cannot be read."""


class Counters:
    """The counters of all packages. A thread reads them, too, so that no wrap is missed.

    seen  the last reading of each, in microjoules
    """

    def __init__(self, folders: dict[str, Path]) -> None:
        """folders: name -> folder of each package. Raises _UnreadableError."""
        self.source = f"RAPL, {' and '.join(folders)}, idle power included"
        self._folders = list(folders.values())
        self._ranges = {folder.name: _number(folder / "max_energy_range_uj", least=1) for folder in self._folders}
        self.seen = {folder.name: _number(folder / "energy_uj") for folder in self._folders}
        self._microjoules, self._started, self._lost = 0, perf_counter(), False
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="qwq-energy", daemon=True)
        self._thread.start()

    @property
    def watching(self) -> bool:
        return self._thread.is_alive()

    def total(self) -> Energy | None:
        with self._lock:
            self._read()
            return None if self._lost else Energy(self._microjoules / 1e6, perf_counter() - self._started)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS):
            with self._lock:
                self._read()

    def _read(self) -> None:
        for folder in self._folders:
            try:
                now = _number(folder / "energy_uj")
            except _UnreadableError:
                self._lost = True
                return
            more = now - self.seen[folder.name]
            self._microjoules += more if more >= 0 else more + self._ranges[folder.name]
            self.seen[folder.name] = now


def find_meter(watts: float | None = None, root: Path = ROOT) -> tuple[Meter | None, str]:
    """Return a meter, and a line that tells its source; or None, and a line that tells why there is none.

    watts  that the user read from a meter; None: look for counters
    """
    if watts is not None:
        given = Given(watts)
        return given, given.source
    folders = {}
    for folder in sorted((root / _POWERCAP).glob("intel-rapl:*"), key=lambda folder: (len(folder.name), folder.name)):
        name = read(folder / "name") or ""
        if _DOMAIN.fullmatch(folder.name) and name.startswith("package"):
            folders[name] = folder
    if not folders:
        machine = "this machine shows no energy counters, as most virtual machines and containers"
        return None, f"not measured: {machine}; {_ADVICE}"
    try:
        counters = Counters(folders)
    except _UnreadableError as problem:
        allowed = "Linux lets only root read it, unless `chmod a+r` allows it"
        return None, f"not measured: {problem} cannot be read; {allowed}; {_ADVICE}"
    return counters, counters.source


def _number(file: Path, least: int = 0) -> int:
    """Return the whole number in a file. Raises _UnreadableError with its path."""
    text = read(file) or ""
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise _UnreadableError(file)
    return int(text)
