"""Print an answer as it comes: the answer on stdout, the reasoning on stderr, dimmed on a terminal.

On a terminal, control characters of a model are shown, and not obeyed: they could write to the clipboard, or hide text.
"""

from __future__ import annotations

import sys
from collections.abc import Container
from typing import TextIO

from .screen import DIM, PLAIN, styles

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class Writer:
    """Prints the pieces of one answer.

    shown        kinds of pieces to print: see `engine.generation.Kind`
    thinking_to  the stream for the reasoning; None: stderr
    """

    def __init__(self, shown: Container[str], thinking_to: TextIO | None = None) -> None:
        self.shown = shown
        self.thinking_to = sys.stderr if thinking_to is None else thinking_to
        self.dim = styles(self.thinking_to)
        self.last = ""
        self.kind: str | None = None

    def write(self, text: str, kind: str) -> None:
        if kind not in self.shown or not text:
            return
        if self.kind not in (None, kind):  # a model may go back to its reasoning
            self.close()
            self.thinking_to.write("\n")
        stream = self.thinking_to if kind == "thinking" else sys.stdout
        if stream.isatty():
            text = text.translate(_CONTROLS)
        if self.dim and kind == "thinking":
            text = f"{DIM}{text}{PLAIN}"
        stream.write(text)
        stream.flush()
        self.last, self.kind = text.removesuffix(PLAIN), kind

    def close(self) -> None:
        """End the last line, so that whatever comes next starts on its own."""
        if self.last and not self.last.endswith("\n"):
            stream = self.thinking_to if self.kind == "thinking" else sys.stdout
            stream.write("\n")
            stream.flush()
        self.last = ""
