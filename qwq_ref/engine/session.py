"""A session: the token ids of one conversation, and the sequence that holds them."""

from __future__ import annotations

from collections.abc import Sequence as Ids

from ..spec.ops import Array
from .backends import LAST, Backend, Progress


class Session:
    """Token ids that a backend has computed, in order.

    backend  what computes
    ids      the tokens held; change them with `extend` and `rollback` alone
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.ids: list[int] = []
        self._sequence = backend.sequence()
        self._logits: Array | None = None  # of the token after the last one; None where they are not known

    def extend(self, ids: Ids[int], progress: Progress | None = None) -> None:
        """Add tokens at the end, a chunk at a time. `progress` is called with the number of tokens computed.

        After an interruption the session holds the chunks that were computed whole. Raises ValueError as `Backend.run`.
        """
        for start in range(0, len(ids), self.backend.chunk):
            chunk = [int(token) for token in ids[start : start + self.backend.chunk]]
            self._logits = self.backend.run(chunk, self._sequence, LAST, progress=progress)[0]
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
