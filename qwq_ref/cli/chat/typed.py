"""The text that a user has typed: whether a message is whole, and whether it is a command."""

from __future__ import annotations

import re
from collections.abc import Callable

BLOCK = '"""'  # a message that begins with it ends with it, and may have many lines
_COMMAND = re.compile(r"/([A-Za-z?][\w-]*)(?:\s+(.*))?", re.DOTALL)


def is_whole(text: str) -> bool:
    """Return whether a message is complete: it is no block that is still open."""
    return not text.startswith(BLOCK) or (len(text) >= 2 * len(BLOCK) and text.rstrip().endswith(BLOCK))


def message(text: str) -> str:
    """Return a complete message without the quotes of a block."""
    if text.startswith(BLOCK):
        return text.rstrip()[len(BLOCK) : -len(BLOCK)].strip("\n")
    return text


def command(text: str) -> tuple[str, str] | None:
    """Return the name and the arguments of a command such as /save FILE; None for a message.

    A path such as /usr/bin is a message, and so is a text behind a space.
    """
    match = _COMMAND.fullmatch(text.rstrip())
    return None if match is None else (match[1].lower(), (match[2] or "").strip())


def read_message(line: Callable[[bool], str | None]) -> str | None:
    """Return the next message of lines that come one by one; None at their end.

    line  returns the next line without its end; its argument tells whether the line goes on a message
    """
    text = line(False)
    while text is not None:
        if not is_whole(text):
            more = line(True)
        elif text.endswith("\\") and not text.startswith(BLOCK):
            more, text = line(True), text[:-1]
        else:
            return message(text)
        if more is None:  # the end came before the rest
            return message(text) if is_whole(text) else text[len(BLOCK) :]
        text = f"{text}\n{more}"
    return None
