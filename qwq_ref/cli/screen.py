"""The terminal that shows stderr: the progress bar on its last line, questions, and the line that the cursor is in."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import TextIO

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
_ERASE = "\r\x1b[K"
_FIRST_COLUMN = re.compile(r"- | *(\S+(?: \S+)* {2,})?")


class Screen:
    """The terminal, and the progress bar on its last line.

    The bar leaves its line before anything else is printed, and comes back when a line is complete.
    `streams.standard` tells what the command prints.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.descriptor: int | None = None  # None: stderr is no terminal
        self.has_output = False  # stdout is the same terminal
        self.echoes = False  # the terminal may show ^C where the cursor was
        self._bar = ""
        self._drawn = False
        self._fresh = True  # the cursor is at the start of a line

    @property
    def shows_bars(self) -> bool:
        """Whether stderr is a terminal that can erase a line."""
        return self.descriptor is not None and _has_sequences()

    def draw(self, bar: str) -> None:
        """Show a bar in place of the last one; "" shows none."""
        with self.lock:
            if not self.shows_bars:
                return
            self._bar = bar
            if bar and self._fresh:
                self._drawn = True  # before, because Ctrl-C can come after any of these lines
                self._put(f"\r{bar}\x1b[K")
            elif self._drawn:
                self._clear()

    @contextlib.contextmanager
    def without_bar(self, text: str) -> Iterator[None]:
        """Keep the bar away while the block prints `text`, and until a line is complete."""
        with self.lock:
            if self._drawn or text:
                self._clear()
            if text:
                self._fresh = text.removesuffix(PLAIN).endswith("\n")  # before, because Ctrl-C can come in the block
            yield
            if self._fresh and self._bar:
                self.draw(self._bar)

    def end_line(self) -> None:
        """Start a new line, as behind a question, unless the cursor is at the start of one."""
        with self.lock:
            if self.descriptor is not None and not self._fresh:
                self._put("\n")
                self._fresh = True

    def ask(self, question: str, keyboard: TextIO) -> str:
        """Print a question on stderr, and return the line that the user types; "" for Ctrl-D."""
        print(question, end="", file=sys.stderr, flush=True)
        answer = keyboard.readline()
        if answer.endswith("\n"):
            self._fresh = True  # the terminal has shown Enter, too
        self.end_line()
        return answer

    def columns(self) -> int:
        """Return the width of the terminal."""
        try:
            return os.get_terminal_size(self.descriptor or 2).columns or 80
        except OSError:
            return 80

    def width(self) -> int:
        """Return the columns for a bar. Some stay free, because the terminal echoes ^C behind the bar."""
        return max(self.columns() - 4, 8)

    def _clear(self) -> None:
        """Erase the bar, or the echo of Ctrl-C alone in its line."""
        if self._drawn:
            self._put(_ERASE)
        elif self.echoes and self._fresh:
            # If stdout is elsewhere, the line may hold what another program printed, as in `qwq generate | cat`.
            self._put(_ERASE if self.has_output and self.shows_bars else "\n")
        self._drawn = self.echoes = False

    def _put(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that went away, or a busy one: the next bar comes soon
            os.write(self.descriptor or 2, text.encode(sys.stderr.encoding or "ascii", "replace"))


screen = Screen()


def tell(message: str, dim: bool = False) -> None:
    """Print a message on stderr. Where the terminal is too narrow, break it behind semicolons, else between words."""
    before, after = (DIM, PLAIN) if dim and styles(sys.stderr) else ("", "")
    if screen.descriptor is None:
        print(message, file=sys.stderr)
        return
    columns, lines = screen.columns(), [""]
    parts = message.split("; ")
    for part in [*(f"{part};" for part in parts[:-1]), parts[-1]]:
        if lines[-1] and len(f"{lines[-1]} {part}") <= columns:
            lines[-1] += f" {part}"
        else:
            lines += _wrapped(part, columns)
    print(before + "\n".join(lines[1:]) + after, file=sys.stderr)


def show(page: str) -> None:
    """Print a result on stdout. On a terminal, lines that are too wide for it go on below their second column.

    A line with a command to copy stays whole.
    """
    if screen.has_output:
        columns, lines = screen.columns(), []
        for line in page.split("\n"):
            if len(line) > columns and not line.startswith("to run: "):
                indent = len(_FIRST_COLUMN.match(line)[0])  # type: ignore[index]
                lines += _wrapped(line, columns, " " * min(indent, columns // 2))
            else:
                lines.append(line)
        page = "\n".join(lines)
    print(page)


def _wrapped(line: str, columns: int, indent: str = "") -> list[str]:
    return textwrap.wrap(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def styles(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that shows styles, and the user wants them."""
    return stream.isatty() and _has_sequences() and not os.environ.get("NO_COLOR")


def _has_sequences() -> bool:
    return os.environ.get("TERM") != "dumb"
