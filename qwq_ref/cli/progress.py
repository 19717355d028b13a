"""Progress bars on stderr, if that is a terminal. `screen` keeps them apart from all other output."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from .screen import screen

_WAIT = 0.3  # seconds without a bar at the start, so that short work shows none
_EVERY = 0.1  # seconds between two drawings
# The first one that fits the terminal is taken.
_FORMS = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}{speed}{left}{note}",
    "{desc}: {percentage:3.0f}%, {n_fmt}/{total_fmt} {unit}{left}{note}",
    "{desc}: {percentage:3.0f}%{left}",
    "{percentage:3.0f}%",
)

_shown: list[Bar] = []  # the last one is drawn; those before it wait


class Bar:
    """A bar. Call it with the amount done since the last call, from any thread."""

    def __init__(self, what: str, total: float, unit: str) -> None:
        self.what, self.total, self.unit, self.note = what, total, unit, ""
        self.done = self._first = 0.0
        self._started = time.monotonic()
        self._shows = self._due = self._started + _WAIT

    def __call__(self, count: float) -> None:
        with screen.lock:
            self.done += count
            if self.done >= self.total * (1 - 1e-9):  # fractions may not sum up
                self.draw()
            elif time.monotonic() >= self._due:
                self._due = time.monotonic() + _EVERY
                self.draw()

    def begin(self, done: float) -> None:
        """Count from an amount that an earlier run has done. It is no part of the rate."""
        self.done = self._first = done
        self._started = time.monotonic()

    def says(self, what: str, done: float | None = None) -> None:
        """Change the words before the bar, and the amount done if it is given; draw the bar."""
        with screen.lock:
            self.what = what
            self.done = self.done if done is None else done
            self.draw()

    def draw(self) -> None:
        """Show the bar, if it is the last one and its work is not done yet."""
        with screen.lock:
            if screen.shows_bars and _shown and _shown[-1] is self:
                hidden = time.monotonic() < self._shows or self.done >= self.total * (1 - 1e-9)
                screen.draw("" if hidden else self._text())

    def _text(self) -> str:
        from tqdm import tqdm

        elapsed, columns, scaled = time.monotonic() - self._started, screen.width(), self.total >= 10_000
        rate = (self.done - self._first) / elapsed if elapsed > 0 else 0.0
        left = f", {tqdm.format_interval((self.total - self.done) / rate)} left" if rate else ""

        def text(form: str, width: int | None) -> str:
            written: str = tqdm.format_meter(
                self.done,
                self.total,
                elapsed,
                ncols=width,
                prefix=self.what,
                ascii=not _shows_blocks(),
                unit=self.unit,
                unit_scale=scaled,
                bar_format=form,
                n_fmt=tqdm.format_sizeof(self.done) if scaled else int(self.done),
                speed=_speed(rate, scaled),
                left=left,
                note=self.note and f", {self.note}",
            )
            return written

        fitting = next((form for form in _FORMS if len(text(form, None)) <= columns), _FORMS[-1])
        return text(fitting, columns)


@contextlib.contextmanager
def progress_bar(what: str, total: float, unit: str) -> Iterator[Bar]:
    """Show a bar while the block runs, if stderr is a terminal."""
    bar = Bar(what, total, unit)
    with shown(bar):
        yield bar


@contextlib.contextmanager
def shown(bar: Bar, at_least: float = 0) -> Iterator[None]:
    """Show a bar while the block runs, if stderr is a terminal and the bar's total is at least `at_least`."""
    first = threading.Timer(_WAIT, bar.draw)  # the work may not call for long
    first.daemon = True
    try:
        if bar.total >= at_least and screen.shows_bars:
            _shown.append(bar)
            first.start()
        yield
    finally:
        first.cancel()
        with screen.lock:
            if bar in _shown:
                _shown.remove(bar)
                screen.draw("")
                if _shown:
                    _shown[-1].draw()


def _speed(rate: float, scaled: bool) -> str:
    from tqdm import tqdm

    if rate <= 0:
        return ""
    if scaled:
        return f", {tqdm.format_sizeof(rate)}/s"
    return f", {rate:.1f}/s" if rate >= 1 else f", {1 / rate:.1f} s each"


def _shows_blocks() -> bool:
    try:
        "█▏".encode(sys.stderr.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
