"""A turn of a chat: reasoning, text and tool calls, as they come."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ..engine.scheduler import Progress
from ..text.tools import Arguments, CallBegins, CallEnds, Content, ToolParser
from .answers import ServedAnswer, TextPart


@dataclass(frozen=True)
class Thought:
    """A piece of reasoning."""

    text: str


@dataclass(frozen=True)
class Said:
    """A piece of the answer's text, and the places of its tokens in the output."""

    text: str
    start: int
    stop: int


Delta = Thought | Said | CallBegins | Arguments | CallEnds | Progress


class Turn:
    """One answer of a chat.

    tools     whether calls are looked for
    sure      whether a grammar rules the calls: see `ToolParser`
    one_call  end the answer behind its first call
    """

    def __init__(self, answer: ServedAnswer, tools: bool, sure: bool = False, one_call: bool = False) -> None:
        self.answer = answer
        self._parser = ToolParser(sure=sure) if tools else None
        self._one_call = one_call
        self._called = False

    async def deltas(self) -> AsyncIterator[Delta]:
        """Yield what comes. Raises ApiError."""
        start = stop = 0
        async for part in self.answer.parts():
            if not isinstance(part, TextPart):
                yield part
                continue
            if part.piece.kind == "thinking":
                start = stop = part.stop
                yield Thought(part.piece.text)
                continue
            stop = part.stop
            for delta in self._read(part.piece.text, start, stop):
                if isinstance(delta, Said):
                    start = stop
                self._called = self._called or isinstance(delta, CallEnds)
                yield delta
                if self._called and self._one_call:
                    self.answer.cancel()
                    return
        if self._parser is not None:
            for event in self._parser.finish():
                yield Said(event.text, start, stop) if isinstance(event, Content) else event

    def _read(self, text: str, start: int, stop: int) -> list[Delta]:
        if self._parser is None:
            return [Said(text, start, stop)]
        events = self._parser.feed(text)
        return [Said(event.text, start, stop) if isinstance(event, Content) else event for event in events]

    @property
    def finish_reason(self) -> str:
        """OpenAI's word for the end."""
        return "length" if self.answer.cut else "tool_calls" if self._called else "stop"


def new_id(kind: str) -> str:
    """Return an id that no other object has, such as "chatcmpl-..."."""
    return f"{kind}{secrets.token_hex(12)}"
