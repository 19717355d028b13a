"""A backend whose layers are shared out over processes on several machines: see `engine.backends.stage`.

A pass over the weights is divided into groups of tokens. While a stage computes one group, the stage before it computes
the next: a long prompt, or many sequences, keep all of them busy. A stage that is lost is made again elsewhere. The
sequences that it held are computed again from their tokens, which gives the same bits.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..config import Config
from ..core.attention import pages_of
from ..engine.backends import Ids, Progress, Step, checked_length, checked_steps
from ..engine.backends.stage import Flow, Note, StagePiece
from ..errors import ClusterError, UsageError
from ..spec.ops import Array, Tap
from .groups import NONE, groups
from .stages import StageFacts

CHUNK = 512
_GROUPS = 2  # groups for each stage: more of them leave fewer pauses at both ends of a pass
_TRIES = 5  # passes that are begun anew after a loss
_PAUSE = 0.5  # seconds before a stage is made again
_PATIENCE = 1800.0  # seconds in which a stage must load


@dataclass(frozen=True)
class Calls:
    """The calls of Ray that a pipeline needs. Tests have others.

    start   the number of a stage -> a new actor for it
    get     a reference, or a list of them, and seconds to wait -> the values
    kill    end an actor
    lost    the errors of a process or machine that is gone
    failed  the error of work that failed, whose `cause` tells more
    """

    start: Callable[[int], Any]
    get: Callable[[Any, float | None], Any]
    kill: Callable[[Any], object]
    lost: type[Exception]
    failed: type[Exception]


class Sequence:
    """The tokens of one conversation, whose keys and values the stages hold.

    ids  all tokens: they are computed again where a stage was lost
    """

    def __init__(self, backend: PipelineBackend, number: int, ids: Listed[int] = ()) -> None:
        self.number, self.ids, self._backend = number, [*ids], backend
        weakref.finalize(self, backend.tell, Note(number))

    @property
    def length(self) -> int:
        return len(self.ids)

    def rollback(self, length: int) -> None:
        if checked_length(length, len(self.ids)) < len(self.ids):
            del self.ids[length:]
            self._backend.tell(Note(self.number, length))

    def fork(self, length: int) -> Sequence:
        checked_length(length, len(self.ids))
        other = self._backend.sequence(self.ids[:length])
        self._backend.tell(Note(self.number, length, new=other.number))
        return other

    def fill(self, length: int, rng: np.random.Generator) -> None:
        raise UsageError(None, "stages", "are not timed behind random keys and values")


class PipelineBackend:
    """See `engine.backends.Backend`. Any thread may use it."""

    chunk = CHUNK
    streams = False
    tensors = None

    def __init__(
        self,
        config: Config,
        context: int,
        form: str,
        kv: str,
        isa: str,
        calls: Calls,
        stages: int,
        told: Callable[[str], object] = lambda line: None,
    ) -> None:
        """`told`: called with a line about each loss. Raises ClusterError for a stage that cannot be loaded."""
        self.config, self.context, self.form, self.kv = config, context, form, kv
        self.isa, self.threads, self._calls, self._told = isa, 1, calls, told
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        self._notes: list[list[Note]] = [[] for _ in range(stages)]  # that each stage is still to be told
        self._living: weakref.WeakSet[Sequence] = weakref.WeakSet()
        self._actors: list[Any] = [calls.start(i) for i in range(stages)]
        try:
            self.facts: list[StageFacts] = self._got([actor.ready.remote() for actor in self._actors], _PATIENCE)
        except calls.lost as problem:
            self.close()
            raise ClusterError(None, "ray", f"a stage does not start: {_line(problem)}") from None
        except BaseException:
            self.close()
            raise

    @property
    def description(self) -> str:
        machines = ", ".join(facts.machine for facts in self.facts)
        return f"{len(self._actors)} stages on {machines}, weights {self.form}, KV cache {self.kv}"

    def close(self) -> None:
        """End the processes of all stages."""
        for actor in self._actors:
            self._kill(actor)

    def sequence(self, ids: Listed[int] = ()) -> Sequence:
        with self._lock:
            sequence = Sequence(self, next(self._numbers), ids)
            self._living.add(sequence)
        return sequence

    def tell(self, note: Note) -> None:
        """Let all stages know of a change of a sequence, with their next work."""
        for notes in self._notes:  # without a lock: it may be called at any moment, when a sequence is gone
            notes.append(note)

    def identity(self) -> dict[str, str]:
        self._no_arrays()

    def arrays(self, sequence: Any) -> Listed[Array]:
        self._no_arrays()

    def array_shapes(self, length: int) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        self._no_arrays()

    def restored(self, length: int, fill: Callable[[Listed[Array]], None]) -> Sequence:
        self._no_arrays()

    def _no_arrays(self) -> NoReturn:
        raise UsageError(None, "session", "cannot be saved or loaded where other processes hold keys and values")

    def limit_memory(self, size: int) -> None:
        """Do nothing: the memory of the stages counts, and not that of this machine."""

    def missing(self, steps: Listed[Step]) -> float:
        with self._lock:
            used = sum(pages_of(sequence.length) for sequence in [*self._living])
            pages = max(pages_of(self.context), min(facts.pages for facts in self.facts))
        each = ((step.sequence.length, len(step.ids)) for step in steps)
        return max(0, used + sum(pages_of(length + more) - pages_of(length) for length, more in each) - pages)

    def run(
        self, ids: Ids, sequence: Sequence, rows: slice, tap: Tap | None = None, progress: Progress | None = None
    ) -> Array:
        return self._run([Step(ids, sequence, rows)], tap, progress)[0]

    def run_together(self, steps: Listed[Step], progress: Progress | None = None) -> list[Array]:
        return self._run(steps, None, progress)

    def _run(self, steps: Listed[Step], tap: Tap | None, progress: Progress | None) -> list[Array]:
        ids = [each.tolist() for each in checked_steps(steps, self.config, self.context)]
        divided = groups(ids, steps, 1 if tap else _GROUPS * len(self._actors))
        told, stale = 0, set[int]()

        def tell(tokens: int) -> None:  # a pass that begins anew counts nothing twice
            nonlocal told
            if progress is not None and tokens > told:
                progress(tokens - told)
            told = max(told, tokens)

        for _ in range(_TRIES):
            try:
                for step in steps:
                    if step.sequence.number in stale:
                        self._again(step.sequence)
                        stale.remove(step.sequence.number)
                logits = self._pass(divided, tap, tell)
                break
            except _StaleError as problem:
                stale |= problem.sequences
            except self._calls.lost as problem:
                self._replace(_line(problem))
        else:
            raise ClusterError(None, "ray", f"stages were lost {_TRIES} times in one step")
        for step, each in zip(steps, ids, strict=True):
            step.sequence.ids += each
        counts = [len(range(len(each))[step.rows]) for step, each in zip(steps, ids, strict=True)]
        return np.split(logits, np.cumsum(counts)[:-1])

    def _pass(self, divided: list[list[StagePiece]], tap: Tap | None, tell: Callable[[int], None]) -> Array:
        """Send groups of pieces through all stages -> the logits [rows, V] of all."""
        ends, told = [], list[tuple[list[Note], list[Note]]]()
        with self._lock:  # each stage gets the groups in one order
            for group in divided:
                flow: Any = None
                for actor, notes in zip(self._actors, self._notes, strict=True):
                    sent = notes[: len(notes)]
                    del notes[: len(sent)]
                    told.append((notes, sent))
                    flow = actor.flow.remote(sent, group, flow, tap is not None)
                ends.append(flow)
        found, tokens = [], 0
        try:
            for group, end in zip(divided, ends, strict=True):
                found.append(self._result(end, tap))
                tokens += sum(len(piece.ids) for piece in group)
                tell(tokens)
        except self._calls.lost:  # a stage behind the lost one has heard nothing: what is gone stays gone
            for notes, sent in told:
                notes += [note for note in sent if note.length is None]
            raise
        return np.concatenate(found)

    def _result(self, end: Any, tap: Tap | None) -> Array:
        """Return the logits of a group, once they are there. Raises the error of a stage."""
        flow: Flow = self._got(end)
        if flow.problem is not None:
            raise flow.problem
        if flow.lost:
            raise _StaleError(flow.lost)
        for name, x in flow.taps if tap is not None else ():
            assert tap is not None
            tap(name, x)
        assert flow.x is not None
        return flow.x

    def _again(self, sequence: Sequence) -> None:
        """Compute the positions of a sequence anew, in all stages."""
        for start in range(0, sequence.length, CHUNK):
            piece = StagePiece(sequence.number, start, sequence.ids[start : start + CHUNK], NONE)
            self._pass([[piece]], None, lambda tokens: None)

    def _replace(self, reason: str) -> None:
        """Make the stages again that do not answer."""
        with self._lock:
            for i, actor in enumerate(self._actors):
                try:
                    self.facts[i] = self._got(actor.ready.remote(), _PATIENCE)
                    continue
                except self._calls.lost:
                    self._told(f"stage {i + 1} of {len(self._actors)} was lost and is made again: {reason}")
                self._kill(actor)
                time.sleep(_PAUSE)
                self._actors[i] = self._calls.start(i)
                with contextlib.suppress(self._calls.lost):  # the next pass finds it lost again
                    self.facts[i] = self._got(self._actors[i].ready.remote(), _PATIENCE)

    def _got(self, refs: Any, seconds: float | None = None) -> Any:
        try:
            return self._calls.get(refs, seconds)
        except self._calls.failed as problem:
            raise problem.cause from None  # type: ignore[attr-defined]

    def _kill(self, actor: Any) -> None:
        with contextlib.suppress(self._calls.lost, ValueError):
            self._calls.kill(actor)


class _StaleError(Exception):
    """Sequences of which a stage does not hold all positions."""

    def __init__(self, sequences: Listed[int]) -> None:
        self.sequences = {*sequences}


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200]
