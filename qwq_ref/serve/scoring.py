"""The probabilities of a prompt's own tokens, as evaluations ask for them."""

from __future__ import annotations

import asyncio

import numpy as np

from ..engine.backends import ALL, Step
from ..engine.faults import run_finite
from ..engine.logprobs import TokenLogprob, logprob
from ..engine.scheduler import Scheduler
from ..engine.session import Session

_ROWS = 64  # tokens between two passes of the scheduler, each with a row of logits


async def score(scheduler: Scheduler, ids: list[int], most: int) -> list[TokenLogprob]:
    """Return the log-probability of each token behind those before it; the first has none.

    most  likeliest ids to note with each

    The work shares the thread of the scheduler, a few tokens at a time. The computed prompt is kept for an answer that
    goes on from it. Raises BusyError where memory is short, and NonFiniteError.
    """
    model = scheduler.model
    sequence = model.backend.sequence()
    vocabulary = min(model.tokenizer.size, model.config.V)
    found = [TokenLogprob(ids[0], None)]

    def some(start: int) -> list[TokenLogprob]:
        part = ids[start : start + _ROWS]
        scheduler.make_room(Step(part, sequence, ALL))
        rows = run_finite(model.backend, part, sequence, ALL, model.path, "prompt")[:, :vocabulary].copy()
        for hole in model.tokenizer.holes:
            rows[:, hole.start : hole.stop] = -np.inf
        following = ids[start + 1 : start + 1 + _ROWS]
        return [_noted(row, identity, most) for row, identity in zip(rows, following, strict=False)]

    for start in range(0, len(ids), _ROWS):
        found += await asyncio.to_thread(scheduler.call, lambda start=start: some(start))
    await asyncio.to_thread(scheduler.call, lambda: scheduler.keep(Session(model.backend, model.path, sequence, ids)))
    return found


def _noted(row: np.ndarray, identity: int, most: int) -> TokenLogprob:
    if identity >= len(row):  # an id of the padding, which is never chosen
        return TokenLogprob(identity, -np.inf, logprob(row, 0, most).top)
    return logprob(row, identity, most)
