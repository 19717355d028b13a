"""Answers to tasks: from a model whose passes they share. Each has the bits that it has alone."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ...engine.model import Model, PreparedPrompt
from ...engine.scheduler import Deliver, Ended, Job, Scheduler
from ...errors import UsageError
from .suite import Form, Task

Key = TypeVar("Key")
RUNNING = 16  # answers that share a pass over the weights
_READY = 4  # prompts that wait beside them


@dataclass(frozen=True)
class Asked:
    """A question for a model: one sample of a task.

    budget  tokens of reasoning after which it is closed; None: no limit
    """

    task: Task
    sample: int = 0
    budget: int | None = None
    seed: int = 0

    @property
    def key(self) -> tuple[str, int, int | None]:
        return self.task.id, self.sample, self.budget


@dataclass(frozen=True)
class Completion:
    """The words of a model.

    text, reasoning  of the answer; the text that the form began is no part of it
    tokens, reasoning_tokens  of the output
    seconds          from the first step to the last, which other answers shared
    """

    text: str
    reasoning: str
    prompt_tokens: int
    tokens: int
    reasoning_tokens: int
    finish_reason: str
    seconds: float


class Answerer(Protocol):
    """Answers questions, in any order."""

    def __call__(self, asked: Iterable[Asked]) -> Iterator[tuple[Asked, Completion]]: ...


def seed_of(seed: int, task: Task, sample: int) -> int:
    """Return the seed of a sample: it depends on the run's seed, the task's id and the sample, and on nothing else."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {sample} {task.id}".encode(), digest_size=4).digest())


@dataclass(frozen=True)
class ModelAnswerer:
    """A model that answers.

    max_tokens  of an output
    sampling    fields of `Sampling` that the user chose
    running     answers that share a pass
    """

    model: Model
    form: Form
    max_tokens: int
    sampling: Mapping[str, Any] = field(default_factory=dict)
    running: int = RUNNING

    def prepare(self, asked: Asked) -> PreparedPrompt:
        """Return the prompt of a question, ready to compute. UsageError names a task whose prompt does not fit."""
        form = self.form
        try:
            return self.model.prepare(
                asked.task.prompt,
                system=form.system,
                raw=form.raw,
                begun=form.begun or None,
                stop=form.stop,
                max_tokens=self.max_tokens,
                think_budget=asked.budget,
                seed=asked.seed,
                **self.sampling,
            )
        except UsageError as problem:
            if problem.field != "prompt":
                raise
            raise UsageError(problem.file, asked.task.id, f"the prompt {problem.problem}") from None

    def __call__(self, asked: Iterable[Asked]) -> Iterator[tuple[Asked, Completion]]:
        """Yield each answer as soon as it is complete. Raises the errors of `prepare`, and NonFiniteError."""
        for one, job in answered(self.model, ((one, self.prepare(one)) for one in asked), self.running):
            yield one, completion(job)


def answered(
    model: Model, prepared: Iterable[tuple[Key, PreparedPrompt]], running: int = RUNNING
) -> Iterator[tuple[Key, Job]]:
    """Yield the key and the job of each prompt as soon as its answer is complete. Raises NonFiniteError.

    running  answers that share a pass over the weights
    """
    events: queue.SimpleQueue[tuple[int, Ended]] = queue.SimpleQueue()
    jobs: dict[int, tuple[Key, Job]] = {}
    scheduler = Scheduler(model, running=running, waiting=running + _READY)

    def finished() -> tuple[Key, Job]:
        number, ended = events.get()
        if ended.problem is not None:
            raise ended.problem
        return jobs.pop(number)

    def listener(number: int) -> Deliver:
        return lambda event: events.put((number, event)) if isinstance(event, Ended) else None

    try:
        for number, (key, prompt) in enumerate(prepared):
            if len(jobs) >= running + _READY:
                yield finished()
            jobs[number] = key, scheduler.submit(prompt, listener(number))
        while jobs:
            yield finished()
    finally:
        scheduler.close()


def completion(job: Job) -> Completion:
    """Return what a job said that has ended."""
    run, said = job.generation.run, job.generation
    return Completion(
        said.texts["answer"],
        said.texts["thinking"],
        len(run.prompt),
        len(run.output),
        said.thinking_tokens,
        run.finish_reason or "stop",
        (job.ended or 0.0) - (job.started or 0.0),
    )
