"""Decode many sequences with shared passes over the weights: each gets the ids that it gets alone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator

from ...spec.ops import Array
from ..backends import Backend
from ..faults import run_finite_together
from ..session import Asking, Request


def together(
    works: Iterable[Asking[int]], backend: Backend, most: int, model: str | os.PathLike[str] | None = None
) -> Iterator[tuple[int, int | None]]:
    """Run works such as `plain.decoding`, up to `most` at a time -> pairs of a work's number and its next id, or None.

    None says that the work has ended; the next one then begins. Raises NonFiniteError for a step of any of them.
    """
    coming, running = enumerate(works), dict[int, Asking[int]]()
    logits: dict[int, Array | None] = {}

    def begun() -> Iterator[int]:
        """Begin the next works, each once there is room for it: those before may have ended by then."""
        while len(running) < most and (new := next(coming, None)) is not None:
            number, running[number] = new
            yield number

    while True:
        requests: dict[int, Request] = {}
        for number in itertools.chain(list(running), begun()):
            for item in _until_request(running[number], logits.pop(number, None)):
                if isinstance(item, Request):
                    requests[number] = item
                else:
                    yield number, item
            if number not in requests:
                del running[number]
                yield number, None
        if not requests:
            return
        found = run_finite_together(backend, list(requests.values()), model)
        logits = dict(zip(requests, found, strict=True))


def _until_request(work: Asking[int], logits: Array | None) -> Iterator[int | Request]:
    """Yield the items of a work up to its next request, which takes these logits first."""
    try:
        item = work.send(logits)
        while not isinstance(item, Request):
            yield item
            item = work.send(None)
        yield item
    except StopIteration:
        return
