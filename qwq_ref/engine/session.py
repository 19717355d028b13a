"""A session: the token ids of one conversation, and the sequence that holds them."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Never, TypeVar

from ..spec.ops import Array
from .backends import LAST, Backend, Progress, Step, integer_ids
from .faults import run_finite


@dataclass(frozen=True)
class Request:
    """A step that someone else runs: alone, or together with the steps of other sessions.

    step      of the session's sequence
    name      the step's name in errors; None: its positions
    progress  called with the number of tokens computed since its last call
    """

    step: Step
    name: str | None = None
    progress: Progress | None = None


T = TypeVar("T")
# Work that needs steps: it yields items, and between them requests, to each of which it takes the logits.
Asking = Generator[T | Request, Array | None, None]


class Session:
    """Token ids that a backend has computed, in order.

    backend  what computes
    model    where its weights came from, for errors
    ids      the tokens held; change them with `extend` and `rollback` alone
    """

    def __init__(self, backend: Backend, model: str | os.PathLike[str] | None = None) -> None:
        self.backend = backend
        self.model = model
        self.ids: list[int] = []
        self._sequence = backend.sequence()
        self._logits: Array | None = None  # of the token after the last one; None where they are not known

    def extend(self, ids: Ids[int], progress: Progress | None = None, step: str | None = None) -> None:
        """Add tokens at the end, a chunk at a time.

        progress  called with the number of tokens computed since its last call
        step      the name of this step in errors; None: its positions

        After an interruption or an error the session holds the chunks that were computed whole. Raises ValueError as
        `Backend.run`, and NonFiniteError for a step that gives NaN or infinity.
        """
        for _ in alone(self.asking(ids, progress, step), self.backend, self.model):
            raise AssertionError("only requests come")

    def asking(self, ids: Ids[int], progress: Progress | None = None, step: str | None = None) -> Asking[Never]:
        """Do what `extend` does, but leave each step to the caller: yield it, and take its logits [1, V]."""
        ids = integer_ids(ids).tolist()
        for start in range(0, len(ids), self.backend.chunk):
            chunk = ids[start : start + self.backend.chunk]
            logits = yield Request(Step(chunk, self._sequence, LAST), step, progress)
            assert logits is not None
            self._logits = logits[0]
            self.ids += chunk

    def rollback(self, length: int) -> None:
        """Keep the first `length` tokens. Raises ValueError for a length that the session does not have."""
        if length != len(self.ids):
            self._sequence.rollback(length)
            del self.ids[length:]
            self._logits = None

    def next_logits(self) -> Array:
        """-> logits [V] of the token after the last one. They cost a step after a rollback.

        Raises ValueError while the session holds no token.
        """
        if self._logits is None:
            if not self.ids:
                raise ValueError("an empty session has no logits")
            last = self.ids[-1]
            self.rollback(len(self.ids) - 1)
            self.extend([last])
        assert self._logits is not None
        return self._logits


def alone(work: Asking[T], backend: Backend, model: str | os.PathLike[str] | None = None) -> Iterator[T]:
    """Run each request of some work by itself, and yield its other items. Raises as `faults.run_finite`."""
    logits: Array | None = None
    while True:
        try:
            item = work.send(logits)
        except StopIteration:
            return
        if isinstance(item, Request):
            step = item.step
            logits = run_finite(backend, step.ids, step.sequence, step.rows, model, item.name, item.progress)
        else:
            logits = None
            yield item
