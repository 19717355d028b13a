"""Prompts and settings -> generations, over the machines of a cluster: a mapping for suites and evaluations."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..engine.model import Model
from ..engine.scheduler import Ended, Scheduler
from ..engine.settings import Settings
from .elsewhere import ModelThere
from .load import load_there
from .workers import Workers


@dataclass(frozen=True)
class Said:
    """An answer, as it comes from another process.

    ids            of the output, without an end token
    finish_reason  as in `engine.decode.plain.Run`
    texts          "thinking" and "answer"
    """

    ids: list[int]
    finish_reason: str | None
    texts: dict[str, str]
    seed: int
    prompt_tokens: int


class Answering:
    """A model in a worker, whose scheduler answers prompts side by side."""

    def __init__(self, model: Model, parallel: int) -> None:
        self.model = model
        self.scheduler = Scheduler(model, parallel, waiting=1 << 20)


def answering(there: ModelThere, parallel: int, threads: int) -> Answering:
    """Load a model on a machine, to answer so many prompts at a time."""
    return Answering(load_there(there, parallel, 1, threads), parallel)


def generations_over(
    ray: Any, there: ModelThere, parallel: int, told: Callable[[str], object] = lambda line: None
) -> Workers[Answering]:
    """Return the workers for `generations`, each of which answers so many prompts at a time."""
    return Workers(ray, functools.partial(answering, there, parallel), room=2 * parallel, told=told)


def generations(
    workers: Workers[Answering],
    asked: Sequence[tuple[list[int], Settings]],
    progress: Callable[[int, Said], object] = lambda number, said: None,
) -> list[Said]:
    """Answer prompts, each the ids of a whole prompt with its settings -> the answers, in their order.

    progress  called with the number of a prompt and its answer, as soon as it is there

    An answer has the bits that it has on one machine; give a seed to each. Raises UsageError for a prompt that does not
    fit, NonFiniteError, ClusterError.
    """
    return workers.map(answer, [(ids, replace(how, raw=True)) for ids, how in asked], progress)


async def answer(state: Answering, asked: tuple[list[int], Settings]) -> Said:
    """Answer one prompt in a worker."""
    prepared = await asyncio.to_thread(state.model.prepare, *asked)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    problems: list[Exception] = []

    def deliver(event: Any) -> None:
        if isinstance(event, Ended):
            problems.extend([] if event.problem is None else [event.problem])
            loop.call_soon_threadsafe(ended.set)

    job = state.scheduler.submit(prepared, deliver)
    await ended.wait()
    if problems:
        raise problems[0]
    run, texts = job.generation.run, job.generation.texts
    return Said(run.output, run.finish_reason, {kind: texts[kind] for kind in texts}, run.seed, len(run.prompt))
