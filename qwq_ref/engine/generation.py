"""Generated ids as pieces of text, the budget that ends reasoning, and the words for how an output ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from ..text import StreamDecoder, ThinkingSplitter, Tokenizer
from .decode.plain import Run
from .logprobs import complete
from .loops import Loop, LoopGuard
from .settings import Settings
from .stopping import Stopping

Kind = Literal["thinking", "answer"]

# Appended to reasoning that has spent its budget, before </think>.
_ENOUGH = "\n\nI have thought long enough; here is the answer.\n"
_LIMITS = {"length": "max-tokens", "context": "the context"}


@dataclass(frozen=True)
class Piece:
    """A piece of the output: its text, and the part of the output that it belongs to."""

    text: str
    kind: Kind

    def __str__(self) -> str:
        return self.text


class Transcript:
    """The text of an output, from its ids: every reader of an output gets its pieces from here.

    state     where the output is: in its reasoning or not
    answered  whether the answer has a character that is no white space
    stopping  finds stop strings in the answer. Reasoning may hold them: a stop string such as two line ends would end
              the reasoning, and leave no answer

    Line ends between the reasoning and the answer belong to neither.
    """

    def __init__(self, tokenizer: Tokenizer, state: ThinkingSplitter, stop: Sequence[str] = ()) -> None:
        self.state = state
        self.answered = False
        self.stopping = Stopping(stop)
        self._decoder = StreamDecoder(tokenizer)
        self._begun = False

    def feed(self, identity: int) -> Piece | None:
        """Return the text that an id completes, if it completes any."""
        kind = self._kind
        if self.state.feed(identity) == "marker":
            return self._piece(self._decoder.finish(), kind, last=kind != self._kind)
        return self._piece(self._decoder.feed(identity), kind)

    def finish(self) -> Piece | None:
        """Return the text at the end that waited: for the rest of a character, or of a stop string."""
        return self._piece(self._decoder.finish(), self._kind, last=True)

    @property
    def _kind(self) -> Kind:
        return "thinking" if self.state.thinking else "answer"

    def _piece(self, text: str, kind: Kind, last: bool = False) -> Piece | None:
        """Return the piece of a text, if there is one. `last` tells that none of its kind follows for now."""
        if kind == "answer":
            if self.state.opened and not self._begun:
                text = text.lstrip("\n")
            self._begun = self._begun or bool(text)
            text = self.stopping.feed(text) + (self.stopping.finish() if last else "")
            self.answered = self.answered or bool(text.strip())
        return Piece(text, kind) if text else None


class Generation(Iterator[Piece]):
    """An iterator of pieces of text, each as soon as it is decoded.

    run    counts, times, and at the end the reason for it
    texts  kind -> the text so far
    """

    def __init__(self, run: Run, tokens: Iterable[int], transcript: Transcript) -> None:
        self.run = run
        self.texts: dict[Kind, str] = {"thinking": "", "answer": ""}
        self._transcript = transcript
        self._pieces = self._decode(tokens)

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    @property
    def still_thinking(self) -> bool:
        """Whether the output is inside its reasoning."""
        return self._transcript.state.thinking

    @property
    def thinking_tokens(self) -> int:
        """The number of ids of reasoning so far, without the markers."""
        return self._transcript.state.count

    @property
    def ending(self) -> str | None:
        """A line that says why there is no answer, or no whole one. None for a whole answer, and before the end."""
        reason, answered = self.run.finish_reason, self._transcript.answered
        if self.run.stop_string is not None:
            return None
        if self.run.loop is not None:
            return repetition(self.run.loop)
        thinking, opened = self._transcript.state.thinking, self._transcript.state.opened
        if reason in _LIMITS:
            limit = _LIMITS[reason]
            if thinking and answered:
                what = f"the reasoning after the answer used up {limit}"
            elif opened and not answered:
                what = f"the reasoning used up {limit}"
            else:
                what = f"the answer was cut off by {limit}"
        elif reason is None or (answered and not thinking):
            return None
        elif thinking:
            what = "the model ended inside its reasoning, " + ("after the answer" if answered else "without an answer")
        else:
            what = "the model ended after its reasoning, without an answer" if opened else "the model gave no answer"
        return f"{what} ({len(self.run.output)} tokens)"

    def take(self, identity: int) -> Piece | None:
        """Add an id of the output -> the text that it completes, if it completes any."""
        return self._said(self._transcript.feed(identity))

    def end(self) -> Piece | None:
        """End the output -> the text of an incomplete character, if there is one."""
        piece = self._said(self._transcript.finish())
        found = self._transcript.stopping.found
        if found is not None:
            self.run.finish_reason, self.run.stop_string = "stop", found
        if self.run.logprobs is not None:
            complete(self.run.logprobs, self.run.output)
        if self.run.finish_reason == "stop" and found is None and not self._transcript.answered:
            self.run.finish_reason = "no_answer"
        return piece

    def _said(self, piece: Piece | None) -> Piece | None:
        if piece is not None:
            self.texts[piece.kind] += piece.text
        return piece

    def _decode(self, tokens: Iterable[int]) -> Iterator[Piece]:
        for token in tokens:
            if piece := self.take(token):
                yield piece
        if piece := self.end():
            yield piece


def repetition(loop: Loop) -> str:
    """Return the words for a repetition that ended an output."""
    tokens = "token" if loop.period == 1 else f"{loop.period} tokens"
    return f"the output repeats itself: the last {tokens} came {loop.times} times; --loop-guard off lets it go on"


class Ending:
    """Says after each token whether the output ends with it: at a stop string, or at a repetition without end.

    times  of a repetition, as for `LoopGuard`; 0 looks for none
    """

    def __init__(self, run: Run, stopping: Stopping, times: int) -> None:
        self._run, self._stopping = run, stopping
        self._guard = LoopGuard(times) if times else None
        self._seen = 0

    def __call__(self) -> str | None:
        """Return the reason, if there is one, and note the stop string or the repetition in the run."""
        if self._stopping.found is not None:
            self._run.stop_string = self._stopping.found
            return "stop"
        if self._guard is not None:
            new = self._run.output[self._seen :]
            self._seen += len(new)
            for token in new:
                self._run.loop = self._guard.feed(token) or self._run.loop
            return None if self._run.loop is None else "loop"
        return None


class Budget:
    """Closes the reasoning after a number of tokens, from the one that opens it: `due` says when, and with which ids.

    closing  ids that end reasoning; empty for a model without </think>
    """

    def __init__(self, tokenizer: Tokenizer, tokens: int | None) -> None:
        """Raises UsageError for a negative budget, or a budget for a model that cannot close its reasoning."""
        if tokens is not None and tokens < 0:
            raise UsageError(None, "think_budget", f"must be at least 0, got {tokens}")
        end = tokenizer.think_end
        if tokens is not None and end is None:
            raise UsageError(None, "think_budget", "this model has no </think> token, which would end its reasoning")
        self.tokens = tokens
        self.closing = [] if end is None else [end, *tokenizer.encode("\n\n")]
        self._sentence = tokenizer.encode(_ENOUGH) if tokens else []

    def due(self, state: ThinkingSplitter) -> Sequence[int]:
        """The state of an output -> ids to append to it. The sentence is said once, should reasoning open again."""
        if self.tokens is None or not state.thinking or state.count < self.tokens:
            return ()
        said, self._sentence = self._sentence, []
        return said + self.closing


def budget_of(tokenizer: Tokenizer, settings: Settings, room: int) -> Budget:
    """Return the budget that settings ask for. Raises UsageError as `Budget`.

    room  tokens that the output can have
    """
    try:
        return Budget(tokenizer, settings.budget(max(room, 0)))
    except UsageError as problem:
        field = problem.field if settings.reasoning_effort is None else "reasoning_effort"
        raise UsageError(None, field, problem.problem) from None
