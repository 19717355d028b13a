"""One pass over the weights for many computations side by side.

For each operation of each layer, every stream computes its own result for every phase. A visitor then sees all results
at once, and may replace them by one value, such as the candidate's. All streams continue from that value. So each
result is judged on the inputs that it was computed from.
"""

from __future__ import annotations

import contextvars
import hashlib
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config import Config
from ..formats import Tensors
from ..spec.ops import Array
from .graph import (
    BEFORE,
    EMBED,
    LAYER,
    PREVIOUS,
    Arithmetic,
    Op,
    Phase,
    absolute,
    after,
)
from .matrix import Matrix

_BLOCK_BYTES = 4 << 20  # small enough for the processor's cache, in every type that it is cast to


@dataclass(frozen=True)
class Stream:
    """A computation: its arithmetic, and the lines of the table that a mistake changes, by their taps."""

    arithmetic: Arithmetic
    replaces: Mapping[str, Op] = field(default_factory=dict)


def check_weights(config: Config, weights: Mapping[str, Array]) -> str:
    """Return the first fault in the names and shapes of a model's weights, or an empty text. Reads no tensor."""
    for name, shape in config.tensors().items():
        if name not in weights:
            return f"there is no {name}"
        if (found := _shape(weights, name)) != shape:
            return f"{name} has shape {list(found)}, and the config implies {list(shape)}"
    return ""


def _shape(weights: Mapping[str, Array], name: str) -> tuple[int, ...]:
    return weights.shape(name) if isinstance(weights, Tensors) else tuple(np.shape(weights[name]))


class Weights:
    """Reads weights by name from a mapping or a model's files, a block of rows at a time.

    digests   name -> SHA-256 of the float32 values, for every tensor that was read whole, if `digest` is set
    progress  called with the number of parameters read since its last call; a second reading does not count
    """

    def __init__(
        self,
        source: Mapping[str, Array],
        block_bytes: int = _BLOCK_BYTES,
        digest: bool = False,
        progress: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.digests: dict[str, str] = {}
        self._source = source
        self._files = source if isinstance(source, Tensors) else None
        self._block_bytes = block_bytes
        self._digest = digest
        self._progress = progress
        self._counted: set[str] = set()

    def vector(self, name: str) -> Array:
        return np.concatenate([block for _, block in self.blocks(name)])

    def matrix(self, name: str) -> Matrix:
        """Return a whole matrix, for a mistake that changes it as a whole."""
        return Matrix(self._source, name)

    def gather(self, name: str, ids: Sequence[int]) -> Array:
        """Return the rows [len(ids), n]. Reads only those, unless the digest of the tensor is wanted."""
        if self._digest:
            for _ in self.blocks(name):
                pass
        rows = {token: self._rows(name, token, token + 1)[0] for token in sorted(set(ids))}
        return np.stack([rows[token] for token in ids])

    def blocks(self, name: str) -> Iterator[tuple[int, Array]]:
        """Yield the blocks of a tensor in order: the number of the first row, and float32 rows [n, ...]."""
        shape = _shape(self._source, name)
        digest = hashlib.sha256() if self._digest and name not in self.digests else None
        step = max(1, self._block_bytes // (4 * max(1, math.prod(shape[1:]))))
        for begin in range(0, shape[0], step):
            block = self._rows(name, begin, min(begin + step, shape[0]))
            if digest is not None:
                digest.update(np.ascontiguousarray(block, "<f4").data)
            if name not in self._counted:
                self._progress(block.size)
            yield begin, block
        self._counted.add(name)
        if digest is not None:
            self.digests[name] = digest.hexdigest()

    def _rows(self, name: str, begin: int, end: int) -> Array:
        if self._files is not None:
            return np.asarray(self._files.rows(name, begin, end), np.float32)
        return np.asarray(self._source[name][begin:end], np.float32)


# (index of the phase, full name of the tap, stream -> result) -> a value for all streams to continue from, or None.
# A stream with a mistake appears only where its result can differ from that of its arithmetic without the mistake. No
# stream appears where an input or the weights are unknown.
Visit = Callable[[int, str, dict[int, Array]], Array | None]


def walk(
    config: Config,
    phases: Sequence[Phase],
    streams: Sequence[Stream],
    weights: Weights | None,
    visit: Visit,
    layers: Collection[int] | None = None,
    threads: int = 1,
) -> None:
    """Run the table once, and show every result to `visit`, in the order of the computation.

    streams  the stream of an arithmetic without a mistake comes before those with one
    weights  None runs only operations without weights, wherever `visit` has given their inputs
    layers   the layers to compute; of the others, `visit` is asked for the last result alone
    threads  threads that share the streams of each block of a matrix. A BLAS with threads of its own waits for all of
             them at every small product, which takes ten times as long if another process uses a core
    """
    with ThreadPoolExecutor(threads) as pool:
        walk = _Walk(config, phases, streams, weights, visit, pool if threads > 1 else None)
        walk.run(range(config.L) if layers is None else layers)


class _Walk:
    def __init__(
        self,
        config: Config,
        phases: Sequence[Phase],
        streams: Sequence[Stream],
        weights: Weights | None,
        visit: Visit,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        self.config = config
        self.phases = phases
        self.streams = streams
        self.weights = weights
        self.visit = visit
        self.pool = pool
        # The results of each stream, by (phase, tap). A stream with a mistake shares all others with its base.
        self.own: list[dict[tuple[int, str], Array]] = [{} for _ in streams]
        plain = {stream.arithmetic: s for s, stream in enumerate(streams) if not stream.replaces}
        self.base = [plain[stream.arithmetic] if stream.replaces else None for stream in streams]

    def run(self, layers: Collection[int]) -> None:
        self._rows_of_table(BEFORE, 0, None)
        previous = EMBED
        kept = {op.tap for op in BEFORE if op.tap != EMBED}
        for layer in range(self.config.L):
            if layer in layers:
                self._rows_of_table(LAYER, layer, previous)
            previous = absolute(layer, "resid_post")
            if layer not in layers:
                for p in range(len(self.phases)):
                    self._show(p, previous, {})
            for own in self.own:
                for key in [key for key in own if key[1] not in kept and key[1] != previous]:
                    del own[key]
        self._rows_of_table(after(self.config), 0, previous)

    def _rows_of_table(self, table: Sequence[Op], layer: int, previous: str | None) -> None:
        groups = itertools.groupby(table, lambda op: op.matrix or op.tap)  # a matrix is read once
        for _, group in groups:
            self._group(list(group), layer, previous)

    def _group(self, ops: list[Op], layer: int, previous: str | None) -> None:
        jobs: list[_Job] = []
        for op, p, s in itertools.product(ops, range(len(self.phases)), range(len(self.streams))):
            job = self._job(op, p, s, layer, previous)
            if job is not None:
                jobs.append(job)
        self._compute(jobs, layer)
        for op, p in itertools.product(ops, range(len(self.phases))):
            results = {job.stream: job.result for job in jobs if job.tap == op.tap and job.phase == p and job.done}
            self._show(p, absolute(layer, op.tap), results)

    def _job(self, op: Op, p: int, s: int, layer: int, previous: str | None) -> _Job | None:
        """Return the work of a stream for one result; None if inputs are unknown or its base computes the same."""
        stream = self.streams[s]
        mine = stream.replaces.get(op.tap, op)
        if self.weights is None and (mine.matrix or mine.vectors):
            return None
        dirty = mine is not op
        values = []
        for name in mine.inputs:
            full = previous if name == PREVIOUS else absolute(layer, name.removeprefix("*"))
            assert full is not None
            parts = []
            for q in range(0 if name.startswith("*") else p, p + 1):
                value = self.own[s].get((q, full))
                if value is not None:
                    dirty = True
                elif (base := self.base[s]) is not None:
                    value = self.own[base].get((q, full))
                if value is None:
                    return None
                parts.append(value)
            values.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
        if self.base[s] is not None and not dirty:
            return None
        return _Job(op.tap, mine, p, s, values)

    def _compute(self, jobs: list[_Job], layer: int) -> None:
        by_matrix: dict[tuple[str, Any], Sharing] = {}
        wholes: dict[str, Matrix] = {}  # read once for all mistakes
        for job in jobs:
            if job.op.matrix is None or job.op.tap == EMBED:
                job.parts.append(self._run(job.op, job.stream, job.phase, layer, job.values, None, 0))
            else:
                sharing = by_matrix.setdefault((absolute(layer, job.op.matrix), job.op.change), {})
                sharing.setdefault((job.op, job.stream), []).append(job)
        for (name, change), sharing in by_matrix.items():
            assert self.weights is not None
            blocks: Iterable[tuple[int, Array]] = self.weights.blocks(name)
            if change is not None:
                whole = wholes.setdefault(name, self.weights.matrix(name))
                blocks = [(0, change(self.config, whole))]
            # A token's result depends on its own row alone, so the rows of all phases are multiplied at once.
            rows = {key: np.concatenate([job.values[0] for job in several]) for key, several in sharing.items()}
            for first, block in blocks:
                self._multiply(sharing, rows, block, first, layer)

    def _multiply(
        self, sharing: Sharing, rows: dict[tuple[Op, int], Array], block: Array, first: int, layer: int
    ) -> None:
        """Multiply one block of a matrix, for all jobs that share it."""
        kinds = {self.streams[s].arithmetic.kind for _, s in sharing}
        cast = dict(zip(kinds, self._each(lambda kind: kind[1](np.asarray(block, kind[0])), kinds), strict=True))

        def columns(key: tuple[Op, int]) -> Array:
            op, s = key
            of_kind = cast[self.streams[s].arithmetic.kind]
            return self._run(op, s, sharing[key][0].phase, layer, [rows[key]], of_kind, first)

        for jobs, part in zip(sharing.values(), self._each(columns, sharing), strict=True):
            for job in jobs:
                job.parts.append(part[: len(job.values[0])])
                part = part[len(job.values[0]) :]

    def _each(self, function: Callable[[Any], Array], items: Iterable[Any]) -> list[Array]:
        """Call `function` for each item on all threads, with NumPy's error state of this thread."""
        if self.pool is None:
            return [function(item) for item in items]
        own = [(contextvars.copy_context(), item) for item in items]
        return list(self.pool.map(lambda pair: pair[0].run(function, pair[1]), own))

    def _run(
        self, op: Op, stream: int, p: int, layer: int, values: list[Array], block: Array | None, first: int
    ) -> Array:
        """Return a result, or those of its columns that a block of the matrix computes."""
        arithmetic, phase = self.streams[stream].arithmetic, self.phases[p]
        weights = []
        if op.tap == EMBED and self.weights is not None and op.matrix is not None:
            weights.append(self._embedding(op.matrix)[phase.start : phase.S])
        for name in op.vectors:
            vector = self._vector(absolute(layer, name))
            weights.append(vector if block is None else vector[first : first + len(block)])
        weights = [arithmetic.rnd(np.asarray(w, arithmetic.dtype)) for w in weights]
        if block is not None:
            weights.insert(0, block)
        return arithmetic.run(op, self.config, phase, layer, values, weights)

    def _vector(self, name: str) -> Array:
        assert self.weights is not None
        found = self._held.get(name)
        if found is None:
            found = self.weights.vector(name)
            self._held = {name: found}  # the last one alone: the operations of a group share it
        return found

    def _embedding(self, name: str) -> Array:
        """Return the rows of the tokens of all phases, in their order."""
        assert self.weights is not None
        if name not in self._held:
            self._held = {name: self.weights.gather(name, [token for phase in self.phases for token in phase.ids])}
        return self._held[name]

    _held: Mapping[str, Array] = {}

    def _show(self, p: int, name: str, results: dict[int, Array]) -> None:
        given = self.visit(p, name, results)
        for s, stream in enumerate(self.streams):
            if given is not None:
                self.own[s].pop((p, name), None)
                if self.base[s] is None:
                    self.own[s][p, name] = np.asarray(given, stream.arithmetic.dtype)
            elif s in results:
                self.own[s][p, name] = results[s]


class _Job:
    """The work of one stream for one result, which a matrix computes block by block of its columns."""

    def __init__(self, tap: str, op: Op, phase: int, stream: int, values: list[Array]) -> None:
        self.tap = tap
        self.op = op
        self.phase = phase
        self.stream = stream
        self.values = values
        self.parts: list[Array] = []

    @property
    def done(self) -> bool:
        return bool(self.parts)

    @property
    def result(self) -> Array:
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts, axis=1)


Sharing = dict[tuple[Op, int], list[_Job]]  # the jobs that share a matrix, by operation and stream
