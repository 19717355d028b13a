"""Decode many sequences with shared passes over the weights: each gets the ids that it gets alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ..backends import Backend
from ..session import Asking
from .batch import Batch


def together(
    works: Iterable[Asking[int]], backend: Backend, most: int, model: str | os.PathLike[str] | None = None
) -> Iterator[tuple[int, int | None]]:
    """Run works such as `plain.decoding`, up to `most` at a time -> pairs of a work's number and its next id, or None.

    None says that the work has ended; the next one then begins. Raises NonFiniteError for a step of any of them.
    """
    batch, coming = Batch(backend, model, live=False), enumerate(works)
    while True:
        ended = False
        while len(batch) < most and (new := next(coming, None)) is not None:
            batch.add(*new)
        for number, item in batch.items():
            if isinstance(item, Exception):
                raise item
            ended = ended or item is None
            yield number, item
        if ended:  # the next works share the pass
            continue
        if not len(batch):
            return
        for _, problem in batch.run():
            raise problem
