"""A session: the token ids of one conversation, and the sequence that holds them."""

from __future__ import annotations

import os
from collections.abc import Sequence as Ids

from ..spec.ops import Array
from .backends import LAST, Backend, Progress, integer_ids
from .faults import run_finite


class Session:
    """Token ids that a backend has computed, in order.

    backend  what computes
    ids      the tokens held; change them with `extend` and `rollback` alone
    """

    def __init__(self, backend: Backend, model: str | os.PathLike[str] | None = None) -> None:
        """`model`: where the backend's weights came from, for errors."""
        self.backend = backend
        self._model = model
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
        ids = integer_ids(ids).tolist()
        for start in range(0, len(ids), self.backend.chunk):
            chunk = ids[start : start + self.backend.chunk]
            self._logits = run_finite(self.backend, chunk, self._sequence, LAST, self._model, step, progress)[0]
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
