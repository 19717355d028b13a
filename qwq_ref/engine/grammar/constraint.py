"""A model's vocabulary as llguidance needs it, and the grammar of one answer, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import UsageError
from ...spec.ops import Array
from ...text import ThinkingSplitter, Tokenizer
from .check import LIMITS, check, first_line
from .request import Grammar, require

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LINE_ENDS = 2  # that may stand between the reasoning and the answer


class Vocabulary:
    """The vocabulary of a model for grammars. Made once for a model: that takes half a second for 151,665 tokens.

    tokenizer  of the model
    size       V: ids that may be chosen
    ends       ids that end an answer

    Special tokens and those of reasoning stand for no text, so no grammar has them. Raises UsageError without
    llguidance, and for a model without end tokens, whose answer would never end.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Sequence[int]) -> None:
        require()
        from llguidance import LLTokenizer

        ends = [identity for identity in ends if identity < size]
        if not ends:
            raise UsageError(None, "response_format", "this model has no end token, which would end the answer")
        self.tokenizer, self.size, self.ends = tokenizer, size, ends
        thinking = (tokenizer.think_start, tokenizer.think_end)
        hidden = {i for i in (*tokenizer.special, *thinking, *ends) if i is not None and i < size}
        self._words = (size + 31) // 32
        self._tokenizer: LLTokenizer = LLTokenizer(
            _Wrapper(tokenizer, size, hidden, ends[0]),  # type: ignore[arg-type]
            n_vocab=size,
            eos_token=ends,
            slices=LLTokenizer.json_slices(),
        )
        self.line_ends = [  # (id, number of line ends)
            (ids[0], count) for count in (1, 2) if len(ids := tokenizer.encode("\n" * count)) == 1 and ids[0] < size
        ]
        start = tokenizer.think_start
        self.think_start = start if start is not None and start < size else None

    def matcher(self, grammar: Grammar) -> LLMatcher:
        """Return the state of one answer. Raises UsageError for a grammar that does not compile."""
        from llguidance import LLMatcher, LLParserLimits

        check(grammar)
        limits = LLParserLimits(**LIMITS)  # type: ignore[arg-type]
        return LLMatcher(self._tokenizer, grammar.source, log_level=0, limits=limits)

    def allowed(self, matcher: LLMatcher) -> Array:
        """Return bool [V]: the ids that may come next."""
        bits = np.empty(self._words, np.uint32)
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        return np.unpackbits(bits.view(np.uint8), count=self.size, bitorder="little").view(bool)


class Constraint:
    """Keeps the answer of one generation within a grammar.

    state   where the output begins: in its reasoning or not. Reasoning is free
    thinks  whether a model that has not begun its reasoning may open it before its answer

    Up to two line ends may stand between reasoning and answer. Once the answer is complete, only end tokens remain.
    Raises UsageError for a grammar that does not compile, or that no text of this vocabulary fits.
    """

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary, state: ThinkingSplitter, thinks: bool = True) -> None:
        self._field = grammar.parts[0][0]
        self._vocabulary = vocabulary
        self._matcher = vocabulary.matcher(grammar)
        self._state = state
        self._thinks = thinks and vocabulary.think_start is not None
        self._line_ends = 0  # that may follow
        self._begun = False
        self._taken = 0
        self._first = self._next()

    def mask(self, logits: Array, output: Sequence[int]) -> Array:
        """logits float32 [V] -> [V]: -infinity for each id that cannot follow the output.

        `output` is that of the last call with the ids since then. Raises UsageError where the grammar needs more time
        or memory than a step may have.
        """
        for identity in output[self._taken :]:
            self._take(identity)
        self._taken = len(output)
        if self._state.thinking:
            return logits
        allowed = self._next() if self._begun else self._first.copy()
        if not self._begun:
            allowed[[identity for identity, count in self._vocabulary.line_ends if count <= self._line_ends]] = True
            if self._thinks and not self._state.opened:
                allowed[self._vocabulary.think_start] = True
        masked: Array = np.where(allowed, logits, np.float32(-np.inf))
        return masked

    def _take(self, identity: int) -> None:
        part = self._state.feed(identity)
        if part == "marker":
            self._line_ends = _LINE_ENDS
        if part != "answer":
            return
        if not self._begun and self._state.opened:
            text = self._vocabulary.tokenizer.token_bytes(identity)
            if text.strip(b"\n") == b"" and len(text) <= self._line_ends:
                self._line_ends -= len(text)
                return
        self._begun = True
        if not self._matcher.consume_token(identity):
            raise self._fault()

    def _next(self) -> Array:
        allowed = self._vocabulary.allowed(self._matcher)
        if self._matcher.is_error():
            raise self._fault()
        return allowed

    def _fault(self) -> UsageError:
        return UsageError(None, self._field, f"the grammar failed: {first_line(self._matcher.get_error())}")


class _Wrapper:
    """A tokenizer as llguidance takes it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int, hidden: set[int], eos: int) -> None:
        holes = {identity for hole in tokenizer.holes for identity in hole}
        self.tokens = [b"" if identity in holes else tokenizer.token_bytes(identity) for identity in range(size)]
        self.special_token_ids = sorted(hidden)
        self.eos_token_id = eos
        self._tokenizer = tokenizer
        self._seen: Mapping[str, int] = {
            text: identity
            for text, identity in tokenizer.spellings.items()
            if identity < size and identity not in hidden
        }

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the ids of a text as the model writes them: added tokens that stand for text are single ids."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")
        ids: list[int] = []
        for part in self._tokenizer.split_added(text):
            spelling: Any = part
            if isinstance(part, int):
                if part in self._seen.values():
                    ids.append(part)
                    continue
                spelling = self._tokenizer.token_bytes(part).decode("utf-8", errors="replace")
            ids += self._tokenizer.encode(spelling)
        return ids
