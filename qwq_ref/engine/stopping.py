"""Stop strings: text that ends an answer where it appears, across the borders of tokens."""

from __future__ import annotations

from collections.abc import Sequence


class Stopping:
    """Takes text in pieces, and returns the text that may go out: any cut into pieces gives the same text.

    The stop string whose last character comes first ends the text; of several that end there, the longest. It is not
    given out, nor is any text behind it. An end of the text that may become a stop string is held back.

    found  the stop string that ended the text; None before
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        self.found: str | None = None
        self._strings = strings
        self._held = ""

    def feed(self, text: str) -> str:
        """Return the text that may go out now: none once a stop string was found."""
        if self.found is not None or not self._strings:
            return "" if self._strings else text
        text = self._held + text
        places = [(text.find(string), string) for string in self._strings]
        ends = [(start + len(string), start, string) for start, string in places if start >= 0]
        if ends:
            _, start, self.found = min(ends)
            self._held = ""
            return text[:start]
        kept = max(_overlap(text, string) for string in self._strings)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """Return the text that was held back: none follows that could make it a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest end of the text that begins the string."""
    longest = min(len(text), len(string) - 1)
    return next((length for length in range(longest, 0, -1) if string.startswith(text[-length:])), 0)
