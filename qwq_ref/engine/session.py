"""A session: the token ids of one conversation, and the sequence that holds them."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Never, TypeVar

import numpy as np

from ..spec.ops import Array
from .backends import LAST, Backend, Progress, Sequence, Step, integer_ids
from .faults import run_finite


@dataclass(frozen=True)
class Request:
    """A step that someone else runs: alone, or together with the steps of other sessions.

    step      of the session's sequence, at its end
    session   what asks; None: something else, which holds a sequence itself
    name      the step's name in errors; None: its positions
    progress  called with the number of tokens computed since its last call
    """

    step: Step
    name: str | None = None
    progress: Progress | None = None
    session: Session | None = None


T = TypeVar("T")
# Work that needs steps: it yields items, and between them requests, to each of which it takes the logits.
Asking = Generator[T | Request, Array | None, None]


class Session:
    """Token ids that a backend has computed, in order.

    backend  what computes
    model    where its weights came from, for errors
    ids      the tokens held; change them with `extend` and `rollback` alone
    """

    def __init__(
        self,
        backend: Backend,
        model: str | os.PathLike[str] | None = None,
        sequence: Sequence | None = None,
        ids: Ids[int] = (),
    ) -> None:
        """`sequence`: one that holds `ids`; None: an empty one."""
        self.backend = backend
        self.model = model
        self.ids = [*ids]
        self._sequence = backend.sequence() if sequence is None else sequence
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
        try:
            for start in range(0, len(ids), self.backend.chunk):
                chunk = ids[start : start + self.backend.chunk]
                logits = yield Request(self.step(chunk), step, progress, self)
                assert logits is not None
                self._logits = logits[0]
                self.ids += chunk
        except BaseException:  # the asked step may have been computed in part, or its sequence emptied
            self._agree()
            raise

    def _agree(self) -> None:
        """Keep the positions that both the ids and the sequence have."""
        held = self.held
        self._sequence.rollback(held)
        if held < len(self.ids):
            del self.ids[held:]
            self._logits = None

    @property
    def held(self) -> int:
        """The number of first tokens that are in memory: all, but after `forget`."""
        return min(len(self.ids), self._sequence.length)

    def step(self, ids: Ids[int]) -> Step:
        """Return the step that adds tokens at the end -> logits [1, V] of the last one."""
        return Step(ids, self._sequence, LAST)

    def forget(self) -> list[int]:
        """Give back the memory of all tokens while a step is asked for -> their ids, which then must be computed again.

        The step goes on behind them as if nothing had happened.
        """
        self._sequence.rollback(0)
        return self.ids

    def fork(self, length: int) -> Session:
        """Return a session with the first `length` tokens. Both share the memory of these."""
        return Session(self.backend, self.model, self._sequence.fork(length), self.ids[:length])

    def arrays(self) -> Ids[Array]:
        """Return the arrays that hold the tokens: see `Backend.arrays`. They are valid while the session is held."""
        return self.backend.arrays(self._sequence)

    def keep_common(self, ids: Ids[int]) -> int:
        """Keep the tokens that are also the first of `ids` -> their number."""
        common = common_prefix(self.ids, ids)
        self.rollback(common)
        return common

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


def common_prefix(a: Ids[int], b: Ids[int]) -> int:
    """Return the number of first tokens that two lists have in common."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(differs[0]) if len(differs) else n


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
