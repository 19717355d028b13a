"""Generated ids as pieces of text, and the budget that ends reasoning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from ..text import StreamDecoder, ThinkingSplitter, Tokenizer
from .decode.plain import Run

Kind = Literal["thinking", "answer"]

# Appended to reasoning that has spent its budget, before </think>.
_ENOUGH = "\n\nI have thought long enough; here is the answer.\n"


@dataclass(frozen=True)
class Piece:
    """A piece of the output: its text, and the part of the output that it belongs to."""

    text: str
    kind: Kind

    def __str__(self) -> str:
        return self.text


class Generation(Iterator[Piece]):
    """An iterator of pieces of text, each as soon as it is decoded.

    run             counts, times, and at the end the reason for it
    still_thinking  whether the output has not left its reasoning yet
    """

    def __init__(self, run: Run, tokens: Iterator[int], tokenizer: Tokenizer, thinking: bool) -> None:
        self.run = run
        self.still_thinking = thinking
        self._pieces = self._decode(tokens, tokenizer, thinking)

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def _decode(self, tokens: Iterator[int], tokenizer: Tokenizer, thinking: bool) -> Iterator[Piece]:
        splitter = ThinkingSplitter(tokenizer, thinking)
        decoder = StreamDecoder(tokenizer)
        kind: Kind = "thinking" if thinking else "answer"
        for token in tokens:
            part = splitter.feed(token)
            if part == "marker":
                text, part = decoder.finish(), kind
                kind = "answer" if kind == "thinking" else "thinking"
                self.still_thinking = kind == "thinking"
            else:
                text = decoder.feed(token)
            if text:
                yield Piece(text, part)
        if rest := decoder.finish():
            yield Piece(rest, kind)


class Budget:
    """Closes the reasoning after a number of tokens: an `intervene` function of `decode.plain.generate`.

    closing  ids that end reasoning; empty for a model without </think>
    """

    def __init__(self, tokenizer: Tokenizer, tokens: int | None, thinking: bool) -> None:
        """Raises UsageError for a negative budget, or a budget for a model that cannot close its reasoning."""
        if tokens is not None and tokens < 0:
            raise UsageError(None, "think_budget", f"must be at least 0, got {tokens}")
        self.end = tokenizer.think_end
        if tokens is not None and thinking and self.end is None:
            raise UsageError(None, "think_budget", "this model has no </think> token")
        self.tokens = tokens
        after = tokenizer.encode("\n\n")
        self.closing = [] if self.end is None else [self.end, *after]
        self.forced = tokenizer.encode(_ENOUGH) + self.closing

    def __call__(self, output: list[int]) -> Sequence[int]:
        """The output so far -> ids to append to it."""
        return self.forced if len(output) == self.tokens and self.end not in output else ()
