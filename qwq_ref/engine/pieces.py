"""Fill the tensors of a plan with threads, some rows at a time, in memory or in files."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from .. import core
from ..core import PANEL, Array, Packed
from ..core.magnitude import FLOAT32_MAX, first_beyond, within
from ..errors import CheckpointError, FormError
from ..formats.packed import Stored
from ..formats.source import Tensors
from .thread import Pool

SLICE = 1 << 22  # weights that all threads together read and pack at a time
_PIECE = 1 << 20  # weights that one thread takes at most: they stay in the processor's cache until they are packed
_ROWS = 1 << 10  # of a tensor that are read at a time to find a bad weight
BF16 = np.dtype(ml_dtypes.bfloat16)

Progress = Callable[[float], object]
Notes = Mapping[str, int]  # numbers to remember with a tensor


class Target(Protocol):
    """A place for the tensors of a plan. Threads may call `room` and `put` together."""

    def has(self, name: str) -> bool:
        """Return whether a tensor is finished already."""

    def begin(self, name: str) -> None:
        """Prepare for the rows of a tensor."""

    def room(self, name: str, begin: int, end: int) -> Array:
        """Return uint8, 64-byte aligned, for rows [begin, end) of a tensor as `Stored.span` counts them.

        The next call but one of the same thread may return the same memory.
        """

    def put(self, name: str, begin: int, end: int, data: Array) -> None:
        """Take the rows in the memory that `room` returned."""

    def finish(self, name: str, notes: Notes) -> None:
        """Take note that all rows of a tensor are there."""


class InMemory:
    """A `Target` that holds all tensors.

    allocate  returns so many bytes of memory for a matrix
    """

    def __init__(self, planned: Mapping[str, Stored], allocate: Callable[[int], Array] = core.aligned) -> None:
        self._planned, self._allocate = planned, allocate
        self._data: dict[str, Array] = {}

    def has(self, name: str) -> bool:
        return False

    def begin(self, name: str) -> None:
        stored = self._planned[name]
        self._data[name] = (self._allocate if len(stored.shape) == 2 else core.aligned)(stored.nbytes)

    def room(self, name: str, begin: int, end: int) -> Array:
        start, stop = self._planned[name].span(begin, end)
        return self._data[name][start:stop]

    def put(self, name: str, begin: int, end: int, data: Array) -> None:
        """Do nothing: the rows are where they belong."""

    def finish(self, name: str, notes: Notes) -> None:
        """Do nothing: nothing is resumed."""

    def pop(self, name: str) -> Packed | Array:
        """Return a finished tensor, and let go of it."""
        return self._planned[name].view(self._data.pop(name))


@dataclass(frozen=True)
class Rows:
    """The rows of a matrix, or of several that are joined.

    names  the tensors that the rows are of
    dtype  the stored dtype; float32 if the joined tensors differ
    fill   (begin, end, out): write these rows to `out`, and return the number of weights that were read
    owner  row numbers [n] -> for each, the index of its tensor in `names`
    """

    names: Sequence[str]
    dtype: np.dtype[Any]
    fill: Callable[[int, int, Array], int]
    owner: Callable[[Array], Array]

    def by_name(self, begin: int, values: Array) -> Array:
        """Return the sums of values [n] of the rows from `begin` on, for each of `names`."""
        owners = self.owner(np.arange(begin, begin + len(values)))
        sums: Array = np.bincount(owners, values, len(self.names))
        return sums


@dataclass(frozen=True)
class Job:
    """Tensors to be filled row by row.

    names    the tensors of the plan, which have the same rows
    sources  the tensors of the model that they are made of
    piece    called with (begin, end): fills these rows, and returns the number of weights that were read
    check    called when all rows are done; returns the notes of each tensor
    """

    names: Sequence[str]
    sources: Sequence[str]
    piece: Callable[[int, int], int]
    check: Callable[[], Notes | None] | None = None


class Pieces:
    """A pool of threads that read the tensors of a model, and fill the tensors of a plan. The subclass has `jobs`."""

    _overflow = "overflow"  # the fault of numbers that are too large, and were not so in the source

    def __init__(self, planned: Mapping[str, Stored], tensors: Tensors, threads: int, target: Target) -> None:
        self._plan, self._tensors, self._threads, self._target = planned, tensors, threads, target
        self._pool = Pool(threads)
        self._thread = threading.local()
        self._jobs: dict[str, Job] = {}

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()  # an error or Ctrl-C waits only for the pieces that have begun

    def jobs(self) -> Iterator[Job]:
        """Return the jobs that fill all tensors, in the order of the computation."""
        raise NotImplementedError

    def run(self, progress: Progress | None = None, skipped: Progress | None = None) -> Iterator[str]:
        """Fill all tensors, one after another, and yield the names of those that are finished.

        progress  called with the number of weights read since its last call
        skipped   called with the number of weights of tensors that were finished before
        """
        waiting: deque[tuple[Job, list[Future[int]]]] = deque()
        for job in self.jobs():
            if all(map(self._target.has, job.names)):
                if skipped is not None:
                    skipped(sum(math.prod(self._tensors.shape(name)) for name in job.sources))
                continue
            for name in job.names:
                self._target.begin(name)
            waiting.append((job, self._start(job, 0, self._plan[job.names[0]].shape[0])))
            # Enough pieces wait behind the first job to keep all threads busy until it is finished.
            while sum(len(pieces) for _, pieces in waiting) - len(waiting[0][1]) >= 2 * self._threads:
                yield from self._finished(*waiting.popleft(), progress)
        for job, pieces in waiting:
            yield from self._finished(job, pieces, progress)

    def fill(self, name: str, begin: int, end: int) -> None:
        """Fill rows [begin, end) of one tensor, a whole multiple of 64 rows or up to the last. Nothing is finished."""
        if not self._jobs:
            self._jobs = {each: job for job in self.jobs() for each in job.names}
        pieces = self._start(self._jobs[name], begin, end)
        wait(pieces)  # also for those behind an error: the next call may give their memory to other rows
        for piece in pieces:
            piece.result()

    def _finished(self, job: Job, pieces: Sequence[Future[int]], progress: Progress | None) -> Iterator[str]:
        """Wait for the pieces of a job, report them, check the whole, and yield the names of the tensors."""
        for piece in pieces:
            count = piece.result()
            if progress is not None:
                progress(count)
        notes = job.check() if job.check is not None else None
        for name in job.names:
            self._target.finish(name, notes or {})
            yield name

    def _vector(self, result: str, names: Sequence[str]) -> Job:
        rows = self._joined(names)

        def piece(begin: int, end: int) -> int:
            data = self._target.room(result, begin, end)
            vector = data.view(np.float32)
            count = rows.fill(begin, end, vector)
            self._check(vector, rows.names, FLOAT32_MAX)
            self._target.put(result, begin, end, data)
            return count

        return Job([result], names, piece)

    def _joined(self, names: Sequence[str]) -> Rows:
        """Return the rows of tensors, one tensor after another."""
        sizes = [self._tensors.shape(name)[0] for name in names]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]

        def fill(begin: int, end: int, out: Array) -> int:
            count = 0
            for name, start, size in zip(names, starts, sizes, strict=True):
                first, last = max(begin, start), min(end, start + size)
                if first < last:
                    count += self._read(name, first - start, [out[first - begin : last - begin]])
            return count

        ends = np.cumsum(sizes)
        return Rows(names, self._dtype(names), fill, lambda rows: np.searchsorted(ends, rows, "right"))

    def _start(self, job: Job, begin: int, end: int) -> list[Future[int]]:
        """Let threads fill the rows [begin, end) of a job, a multiple of 64 rows at a time.

        A thread takes several pieces at once, because each hand-over between threads costs time.
        """
        K = math.prod(self._plan[job.names[0]].shape[1:])

        def rows_of(weights: int) -> int:
            return max(2 * PANEL, weights // K // (2 * PANEL) * 2 * PANEL)

        share = rows_of(SLICE // self._threads)
        step = min(share, rows_of(_PIECE))

        def pieces(first: int, last: int) -> int:
            return sum(job.piece(i, min(i + step, last)) for i in range(first, last, step))

        return [self._pool.submit(pieces, first, min(first + share, end)) for first in range(begin, end, share)]

    def _check(self, weights: Array, names: Sequence[str], limit: float) -> None:
        """Raise CheckpointError if a weight is beyond +-limit. Its place is looked for only then."""
        if within(weights, limit):
            return
        for name in names:
            N = self._tensors.shape(name)[0]
            for begin in range(0, N, _ROWS):
                found = first_beyond(self._tensors.rows(name, begin, min(begin + _ROWS, N)), limit)
                if found is not None:
                    (row, *column), what = found
                    problem = f"holds {what} at {[begin + row, *column]}"
                    if what in ("NaN", "infinity"):
                        raise CheckpointError(self._tensors.file(name), name, problem)
                    problem += ", beyond the range of this weight form"
                    raise FormError(self._tensors.file(name), name, problem)
        raise CheckpointError(None, ", ".join(names), self._overflow)

    def _scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return memory of this thread: its next call overwrites it. Fresh pages would cost more than reading."""
        size = math.prod(shape) * dtype.itemsize
        if len(getattr(self._thread, "memory", ())) < size:
            self._thread.memory = core.aligned(size)
        scratch: Array = self._thread.memory[:size].view(dtype).reshape(shape)
        return scratch

    def _dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        dtypes = {self._tensors.dtype(name) for name in names}
        return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)

    def _read(self, name: str, begin: int, out: Sequence[Array]) -> int:
        """Fill arrays with the rows of a tensor from `begin` on, with zeros in columns that it has not.

        out  arrays of one dtype and width, with any number of rows
        """
        columns, end = self._tensors.shape(name)[1:], begin + sum(map(len, out))
        if out[0].dtype == self._tensors.dtype(name) and out[0].shape[1:] == columns:
            self._tensors.read_into(name, begin, out)
        else:
            rows = self._tensors.rows(name, begin, end)
            start = 0
            for part in out:
                of_part = part if not columns else part[:, : columns[0]]
                copy_floats(of_part, rows[start : start + len(part)])
                if columns:
                    part[:, columns[0] :] = 0
                start += len(part)
        self._tensors.forget(name, begin, end)
        return (end - begin) * math.prod(columns)


def copy_floats(out: Array, rows: Array) -> None:
    """Copy floats to another dtype. NaN and infinity pass silently: they were looked for, or will be."""
    with np.errstate(all="ignore"):
        out[:] = rows


class Arrays:
    """A dictionary of arrays as `Tensors`."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Array:
        return np.asarray(self._arrays[name], np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._arrays[name].shape)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype; float32 for wider floats, which are rounded. Raises CheckpointError for integers."""
        dtype = np.dtype(self._arrays[name].dtype)
        if dtype.kind != "f" and dtype != BF16:
            raise CheckpointError(None, name, f"must be floats, got {dtype.name}")
        return dtype if dtype in (np.float32, np.float16, BF16) else np.dtype(np.float32)

    def rows(self, name: str, begin: int, end: int) -> Array:
        rows: Array = self._arrays[name][begin:end]
        return rows

    def read_into(self, name: str, begin: int, out: Sequence[Array]) -> None:
        for part in out:
            copy_floats(part, self._arrays[name][begin : begin + len(part)])
            begin += len(part)

    def file(self, name: str) -> None:
        """Return None: the arrays are in no file."""

    def check_finite(self, progress: Callable[[int], object] | None = None) -> None:
        """Do nothing: the arrays are looked at while they are packed."""

    def forget(self, name: str, begin: int, end: int) -> None:
        """Do nothing: the arrays are the caller's."""
