"""The probabilities of a prompt's own tokens, in the thread of a scheduler."""

from __future__ import annotations

import asyncio

from ..engine import scoring
from ..engine.backends import ALL, Step
from ..engine.logprobs import TokenLogprob
from ..engine.scheduler import Scheduler
from ..engine.scoring import ROWS
from ..engine.session import Session


async def score(scheduler: Scheduler, ids: list[int], most: int) -> list[TokenLogprob]:
    """Return the log-probability of each token behind those before it; the first has none.

    most  likeliest ids to note with each

    The work shares the thread of the scheduler, a few tokens at a time. The computed prompt is kept for an answer that
    goes on from it. Raises BusyError where memory is short, and NonFiniteError.
    """
    model = scheduler.model
    sequence = model.backend.sequence()
    found = [TokenLogprob(ids[0], None)]

    def some(start: int) -> list[TokenLogprob]:
        part = ids[start : start + ROWS]
        scheduler.make_room(Step(part, sequence, ALL))
        return scoring.score(model, part, ids[start + 1 : start + 1 + ROWS], sequence, most)

    for start in range(0, len(ids), ROWS):
        found += await asyncio.to_thread(scheduler.call, lambda start=start: some(start))
    await asyncio.to_thread(scheduler.call, lambda: scheduler.keep(Session(model.backend, model.path, sequence, ids)))
    return found
