"""Where the user's messages come from: an editor for the line, a plain terminal, or a pipe."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from typing import Protocol

from ...errors import FileError
from ..screen import screen, tell
from ..streams import STDIN, argument_text, input_stream, read_lines
from ..text_input import whole
from .typed import read_message

PROMPT, MORE = "> ", ". "


class Keyboard(Protocol):
    """A source of messages.

    interactive  whether a person waits: errors are told, and the conversation goes on
    edits        whether `read` shows a draft to change
    """

    interactive: bool
    edits: bool

    def read(self, draft: str = "") -> str | None:
        """Return the next message; None at the end. Raises KeyboardInterrupt, FileError, UsageError.

        draft  a text that the user may change and send
        """

    def open(self) -> contextlib.AbstractContextManager[object]:
        """Take the keyboard for a block, in which all calls of `read` come."""


class Pipe:
    """Messages from standard input that is no terminal, one a line."""

    interactive = edits = False

    def __init__(self) -> None:
        self._lines: Iterator[bytes] = read_lines(input_stream(), STDIN)

    def read(self, draft: str = "") -> str | None:
        return read_message(lambda goes_on: self._line())

    def open(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def _line(self) -> str | None:
        data = next(self._lines, None)
        if data is None:
            return None
        return whole(data, STDIN)


class Plain:
    """Messages from a terminal that edits lines itself."""

    interactive, edits = True, False

    def read(self, draft: str = "") -> str | None:
        return read_message(self._line)

    def open(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def _line(self, goes_on: bool) -> str | None:
        assert sys.stdin is not None
        try:
            text = screen.ask(MORE if goes_on else PROMPT, sys.stdin)
        except UnicodeDecodeError:
            raise FileError(STDIN, None, f"is not {sys.stdin.encoding}") from None
        except OSError as problem:  # the terminal is gone
            raise FileError.from_os(problem, STDIN, "cannot be read") from None
        return argument_text(text.removesuffix("\n"), "message") if text else None


def open_keyboard(history: bool) -> Keyboard:
    """Return the best keyboard that there is. A line on stderr tells once what an extra would bring.

    history  whether the lines may be kept on the disk
    """
    if sys.stdin is None or isinstance(sys.stdin, io.StringIO) or not sys.stdin.isatty():
        return Pipe()
    if screen.descriptor is None or os.environ.get("TERM", "dumb") == "dumb":
        return Plain()
    if importlib.util.find_spec("prompt_toolkit") is None:
        tell("qwq: history, editing and completion of the line need prompt_toolkit: pip install 'qwq_ref[chat]'")
        return Plain()
    from .editor import Editor

    return Editor(history)
