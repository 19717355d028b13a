"""Progress bars on stderr, if that is a terminal. `streams.screen` keeps them apart from all other output."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from .streams import screen

_WAIT = 0.3  # seconds without a bar at the start, so that short work shows none
_EVERY = 0.1  # seconds between two drawings
_WIDE = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}, {speed}, {remaining} left{note}"
_NARROW = "{desc}: {percentage:3.0f}%, {remaining} left"
_COLUMNS = 60  # from which on the bar is wide

_shown: list[Bar] = []  # the last one is drawn; those before it wait


class Bar:
    """A bar. Call it with the amount done since the last call, from any thread."""

    def __init__(self, what: str, total: float, unit: str) -> None:
        self.what, self.total, self.unit, self.note = what, total, unit, ""
        self.done = 0.0
        self._started = time.monotonic()
        self._due = self._started + _WAIT

    def __call__(self, count: float) -> None:
        with screen.lock:
            self.done += count
            if self.done >= self.total * (1 - 1e-9):  # fractions may not sum up
                self.draw()
            elif time.monotonic() >= self._due:
                self._due = time.monotonic() + _EVERY
                self.draw()

    def says(self, what: str, note: str = "") -> None:
        """Change the words before and behind the bar, and draw it."""
        with screen.lock:
            self.what, self.note = what, note
            self.draw()

    def draw(self) -> None:
        """Show the bar, if it is the last one and its work is not done yet."""
        if screen.descriptor is None or not _shown or _shown[-1] is not self:
            return
        waits = time.monotonic() < self._started + _WAIT
        screen.draw("" if waits or self.done >= self.total * (1 - 1e-9) else self._text())

    def _text(self) -> str:
        from tqdm import tqdm

        elapsed, columns, scaled = time.monotonic() - self._started, screen.width(), self.total >= 10_000
        rate = self.done / elapsed if elapsed > 0 else 0.0
        text: str = tqdm.format_meter(
            self.done if scaled else round(self.done),
            self.total,
            elapsed,
            columns,
            prefix=self.what,
            ascii=not _shows_blocks(),
            unit=self.unit,
            unit_scale=scaled,
            bar_format=_WIDE if columns >= _COLUMNS else _NARROW,
            speed=_speed(rate, scaled),
            note=self.note and f", {self.note}",
        )
        return text


@contextlib.contextmanager
def progress_bar(what: str, total: float, unit: str, at_least: float = 0) -> Iterator[Bar]:
    """Show a bar while the block runs, if stderr is a terminal and `total` is at least `at_least`."""
    bar = Bar(what, total, unit)
    if total >= at_least and screen.descriptor is not None:
        _shown.append(bar)
    try:
        yield bar
    finally:
        with screen.lock:
            if bar in _shown:
                _shown.remove(bar)
                screen.draw("")
                if _shown:
                    _shown[-1].draw()


def _speed(rate: float, scaled: bool) -> str:
    if rate <= 0:
        return "?/s"
    if scaled:
        from tqdm import tqdm

        return f"{tqdm.format_sizeof(rate)}/s"
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def _shows_blocks() -> bool:
    try:
        "█▏".encode(sys.stderr.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
