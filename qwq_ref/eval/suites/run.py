"""Ask the tasks of a suite, judge the answers, and keep each as soon as it is judged."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ...tasks.verifiers import Verdict
from .answers import Answerer, Asked, Completion, seed_of
from .records import Record, Records, record
from .suite import Suite, Task

Told = Callable[[Record], object]
_JUDGES = 2  # answers that are judged at the same time: a sandbox waits for its process


def questions(
    suite: Suite, samples: int = 1, budgets: Sequence[int | None] = (None,), seed: int = 0, limit: int | None = None
) -> list[Asked]:
    """Return the questions of a run: each sample of each task under each budget.

    limit  the first tasks of the suite
    """
    return [
        Asked(task, sample, budget, seed_of(seed, task, sample))
        for budget in budgets
        for task in suite.tasks[:limit]
        for sample in range(samples)
    ]


def run(suite: Suite, answerer: Answerer, asked: Sequence[Asked], records: Records, told: Told) -> list[Record]:
    """Answer the questions that have no record yet, and return the records of all.

    told  called with each new record, in this thread

    Raises the errors of the answerer. An interruption keeps all answers that are judged.
    """
    left = [one for one in asked if one.key not in records.all]
    waiting: deque[tuple[Asked, Completion, Future[Verdict]]] = deque()

    def finished(wait: bool) -> Iterator[Record]:
        while waiting and (wait or waiting[0][2].done()):
            one, said, verdict = waiting[0]
            found = record(one, suite.form.begun, said, verdict.result())
            waiting.popleft()
            records.add(found)
            yield found

    with ThreadPoolExecutor(_JUDGES, "qwq-judge") as judges:
        try:
            for one, said in answerer(left):
                waiting.append((one, said, judges.submit(judged, one.task, suite.form.begun + said.text)))
                for each in finished(wait=False):
                    told(each)
            for each in finished(wait=True):
                told(each)
        except BaseException:
            for _, _, verdict in waiting:
                verdict.cancel()
            deque(finished(wait=False), maxlen=0)
            raise
    return [records.all[one.key] for one in asked]


def judged(task: Task, answer: str) -> Verdict:
    """Return the verdict on an answer. A fault of a judge is a verdict that the answer is not correct."""
    started = time.perf_counter()
    try:
        return task.judge(answer)
    except Exception as problem:
        why = f"the judge failed: {type(problem).__name__}: {problem!s:.200}"
        return Verdict(False, why, time.perf_counter() - started)
