"""A scheduler: one thread answers the prompts of many callers with shared passes over the weights.

An answer has the same bits as alone: see `decode.batch`. Any thread may call the methods of `Scheduler` and `Job`.
Nothing that one job does may end the thread: the callers of all others would wait without end.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Ids
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Never, TypeVar

from ..errors import BusyError
from ..host.memory import available_bytes
from .backends import Step
from .decode.batch import Batch, Item, as_exception, without_frames
from .prefixes import Prefixes
from .session import Asking, Session, common_prefix

if TYPE_CHECKING:
    from .generation import Generation
    from .model import Model, PreparedPrompt

T = TypeVar("T")
_SHARED = 64  # prompt tokens in common for which a prompt waits until another one has computed them
_WARM = 128  # tokens of a prefix to come that are computed at a time: a job takes those that are complete
_KEPT = 32  # ended sessions that are kept
_MEMORY = 0.8  # of the memory that is available, for caches


@dataclass(frozen=True)
class Progress:
    """Tokens of a prompt that are computed, and all of them. Those that a session held are not counted."""

    done: int
    total: int


@dataclass(frozen=True)
class Ended:
    """The end of an answer: `generation.run` and `generation.ending` tell the reason.

    problem  the error that ended it; None: none did
    """

    problem: Exception | None = None


Deliver = Callable[[Any], object]  # takes a Progress, a `generation.Piece`, or Ended


@dataclass(eq=False)
class Job:
    """A prompt in a scheduler.

    number      its own
    prepared    the prompt and the settings
    generation  the answer so far
    deliver     called in the scheduler's thread with each event; the last is `Ended`. It must not wait
    submitted, started, ended  seconds of `time.monotonic`; None: not yet
    """

    number: int
    prepared: PreparedPrompt
    generation: Generation
    deliver: Deliver
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    ended: float | None = None
    session: Session | None = None

    @property
    def prompt(self) -> list[int]:
        return self.prepared.run.prompt


@dataclass(frozen=True)
class Counts:
    """The jobs of a scheduler, and the sums since its start.

    running, waiting           jobs
    kept                       sessions that ended, and are kept
    answered, cancelled, failed, refused  jobs
    prompt_tokens, cached_tokens, output_tokens  of answered and cancelled jobs; cached ones are no prompt tokens
    passes, seconds            over the weights, and what they took
    """

    running: int
    waiting: int
    kept: int
    answered: int
    cancelled: int
    failed: int
    refused: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    passes: int
    seconds: float


class Scheduler:
    """Answers prompts for a model, until `close`.

    running  the most jobs that share a pass
    waiting  the most jobs that wait beside them
    memory   bytes for the caches of all of them, and of sessions that ended; None: most of what is available
    """

    def __init__(self, model: Model, running: int = 16, waiting: int = 64, memory: int | None = None) -> None:
        self.model = model
        self._most, self._most_waiting = running, waiting
        self._prefixes = Prefixes(_KEPT)
        self._batch = Batch(model.backend, model.path, spare=self._prefixes.drop_oldest)
        model.backend.limit_memory(int(_MEMORY * available_bytes()) if memory is None else memory)
        self._numbers = itertools.count()
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._warming: tuple[int, Session] | None = None
        self._cancelled: list[Job] = []
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._closing = self._closed = False
        self._totals: dict[str, Any] = dict.fromkeys(Counts.__dataclass_fields__, 0)
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="qwq-scheduler", daemon=True)
        self._thread.start()

    def submit(self, prepared: PreparedPrompt, deliver: Deliver) -> Job:
        """Add a prompt to those that wait: `deliver` gets its events. Raises BusyError where too many wait."""
        with self._changed:
            if self._closing:
                raise BusyError(None, "server", "is shutting down", 1)
            if len(self._waiting) >= self._most_waiting:
                self._totals["refused"] += 1
                raise BusyError(None, "server", f"is busy: {len(self._waiting)} prompts wait already", self.patience)
            job = Job(next(self._numbers), prepared, prepared.generation(), deliver)
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """End a job, before the next pass begins. A job that has ended stays as it is."""
        with self._changed:
            self._cancelled.append(job)
            self._changed.notify_all()

    def warm(self, ids: Ids[int]) -> None:
        """Compute a prefix of prompts to come, whenever there is nothing else to do."""
        self._call(lambda: self._warm([*ids]))

    def keep(self, session: Session) -> None:
        """Keep a session for prompts that begin with its tokens. Only work of `call` may do this."""
        self._prefixes.keep(session)

    @property
    def warming(self) -> bool:
        """Whether a prefix of prompts to come is not computed yet."""
        return self._warming is not None

    def held(self, ids: Ids[int]) -> Session:
        """Return a session with the longest part of a prefix that is computed."""
        return self.call(lambda: self._prefixes.fork([*ids, -1], self.model.session, self._sessions()))

    def make_room(self, step: Step) -> None:
        """Give up kept sessions until there is memory for a step of `call`. Only its work may do this.

        Raises BusyError where that is not enough.
        """
        while self.model.backend.missing([step]):
            if not self._prefixes.drop_oldest():
                raise BusyError(None, "server", "has no memory left for this prompt now", self.patience)

    def call(self, work: Callable[[], T]) -> T:
        """Return work(), called in the scheduler's thread between two passes."""
        return self._call(work).result()

    def _call(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the scheduler is closed")
            self._calls.append((work, future))
            self._changed.notify_all()
        return future

    def close(self, seconds: float = 0.0) -> None:
        """Take no more jobs, let those that run go on for so long, then cancel the rest. Waits for the end."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while (self._waiting or self._running) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            self._closed = True
            self._cancelled += [*self._waiting, *self._running.values()]
            self._changed.notify_all()
        self._thread.join()

    @property
    def counts(self) -> Counts:
        with self._changed:
            now = {"running": len(self._running), "waiting": len(self._waiting), "kept": len(self._prefixes)}
            return Counts(**{**self._totals, **now, "seconds": self._seconds})

    @property
    def patience(self) -> float:
        """The seconds after which a refused caller may try again: those of a job, until one has ended 5."""
        ended = self._totals["answered"]
        return max(1.0, self._seconds / ended if ended else 5.0)

    def _run(self) -> None:
        """Run the loop. A fault that leaves it ends all jobs and the scheduler, so that no caller waits without end."""
        try:
            self._loop()
        except Exception as problem:
            with self._changed:
                self._closing = self._closed = True
                ended = [*self._running.values(), *self._waiting]
                self._waiting.clear()
                for _, future in self._calls:
                    future.set_exception(problem)
            for job in ended:
                self._end(job, "failed", problem)
            raise

    def _loop(self) -> None:
        while self._wait():
            try:
                self._pass()
            except BaseException as problem:  # of the machine or of a library: MemoryError, OSError, a panic in Rust
                self._fail_all(as_exception(problem))

    def _pass(self) -> None:
        self._admit()
        before = len(self._running)
        for number, item in self._batch.items():
            self._take(number, item)
        if len(self._running) < before and self._waiting:
            return  # the next job shares the pass
        started = time.monotonic()
        failures = [*self._batch.run()]
        self._seconds += time.monotonic() - started
        self._totals["passes"] += 1
        for number, problem in failures:
            self._take(number, problem)

    def _fail_all(self, problem: Exception) -> None:
        """End all running jobs: their sessions may hold parts of a pass, so none of them is kept."""
        self._warming = None
        self._batch.clear()
        for job in [*self._running.values()]:
            job.session = None
            self._end(job, "failed", problem)

    def _wait(self) -> bool:
        """Wait for work, and carry out calls and cancellations -> whether to go on."""
        with self._changed:
            while not (self._waiting or len(self._batch) or self._calls or self._cancelled or self._closed):
                self._changed.wait()
            calls, cancelled = [*self._calls], [*self._cancelled]
            self._calls.clear()
            self._cancelled.clear()
        for work, future in calls:
            try:
                future.set_result(work())
            except BaseException as problem:  # a panic in Rust is no Exception
                future.set_exception(without_frames(problem))
        for job in cancelled:
            self._drop(job)
        return not self._closed

    def _drop(self, job: Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            elif job.number in self._running:
                with contextlib.suppress(Exception):
                    self._batch.remove(job.number)
            else:
                return
        job.generation.run.finish_reason = "cancelled"
        self._end(job, "cancelled", None)

    def _admissible(self) -> Job | None:
        """Return the first waiting job whose prompt no running job is about to compute."""
        computing = [job for job in self._running.values() if job.session and len(job.session.ids) < len(job.prompt)]
        for job in [*self._waiting]:
            try:
                held, _ = self._prefixes.common(job.prompt, self._sessions())
            except Exception as problem:
                self._turn_away(job, as_exception(problem))
                continue
            if all(common_prefix(job.prompt, other.prompt) < held + _SHARED for other in computing):
                return job
        return None

    def _turn_away(self, job: Job, problem: Exception) -> None:
        """End a job that waits."""
        with self._changed:
            self._waiting.remove(job)
        self._end(job, "failed", problem)

    def _sessions(self) -> list[Session]:
        warming = [self._warming[1]] if self._warming is not None else []
        return [*warming, *(job.session for job in self._running.values() if job.session is not None)]

    def _admit(self) -> None:
        while len(self._running) < self._most and (job := self._admissible()) is not None:
            try:
                session = self._prefixes.begin(job.prompt, self.model.session, self._sessions())
            except Exception as problem:
                self._turn_away(job, as_exception(problem))
                continue
            if not self._batch.has_room(session, job.prompt[len(session.ids) :]) and len(self._batch):
                self._prefixes.keep(session)
                return
            job.session, job.started = session, time.monotonic()
            with self._changed:
                self._waiting.remove(job)
                self._running[job.number] = job
            self._batch.add(job.number, self._work(job, session))

    def _work(self, job: Job, session: Session) -> Asking[int]:
        """The work of a job, which tells its progress as well."""
        done, total = 0.0, len(job.prompt) - common_prefix(session.ids, job.prompt[:-1])

        def progress(count: float) -> None:
            nonlocal done
            done += count
            self._deliver(job, Progress(min(total, round(done)), total))

        return job.prepared.work(session, progress=progress)

    def _warm(self, ids: list[int]) -> None:
        """Begin to compute a prefix in the background, in place of the one before."""
        if self._warming is not None and self._warming[0] in self._batch:
            self._batch.remove(self._warming[0])
            self._prefixes.keep(self._warming[1])
            self._warming = None
        if not 0 < len(ids) <= self.model.context or not all(0 <= identity < self.model.config.V for identity in ids):
            return
        session = self._prefixes.begin([*ids, -1], self.model.session, self._sessions())
        number = next(self._numbers)
        self._warming = number, session
        self._batch.add(number, _pieces(session, ids[len(session.ids) :]), background=True)

    def _take(self, number: int, item: Item) -> None:
        job = self._running.get(number)
        if job is None:  # a prefix of a prompt to come
            if not isinstance(item, int) and self._warming is not None and self._warming[0] == number:
                self._prefixes.keep(self._warming[1])
                self._warming = None
            return
        if isinstance(item, int):
            try:
                piece = job.generation.take(item)
            except Exception as problem:
                self._batch.remove(number)
                self._end(job, "failed", as_exception(problem))
                return
            if piece:
                self._deliver(job, piece)
            return
        self._end(job, "answered" if item is None else "failed", item)

    def _end(self, job: Job, how: str, problem: Exception | None) -> None:
        try:
            if piece := job.generation.end():
                self._deliver(job, piece)
        except Exception as fault:
            how, problem = "failed", problem or as_exception(fault)
        run = job.generation.run
        if job.session is not None:
            self._prefixes.keep(job.session)
        job.ended, job.session = time.monotonic(), None
        with self._changed:
            self._running.pop(job.number, None)
            self._totals[how] += 1
            self._totals["prompt_tokens"] += len(run.prompt) - run.cached
            self._totals["cached_tokens"] += run.cached
            self._totals["output_tokens"] += len(run.output)
            self._changed.notify_all()
        self._deliver(job, Ended(problem))

    def _deliver(self, job: Job, event: Any) -> None:
        with contextlib.suppress(Exception):  # a caller that is gone does not end the thread of all others
            job.deliver(event)


def _pieces(session: Session, ids: list[int]) -> Asking[Never]:
    """Add tokens to a session a few at a time, so that it soon holds some of them."""
    for start in range(0, len(ids), _WARM):
        yield from session.asking(ids[start : start + _WARM])
