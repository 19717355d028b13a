"""Read a model's weights, and pack them if the source holds them as floats.

Threads read and pack some rows of a matrix at a time, so that little more than the result is held. A bfloat16
checkpoint that is packed as bf16 is never widened: its bits are read into the processor's cache and copied into panels.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from .. import core
from ..config import Config
from ..core import PANEL, Packed
from ..core.formats import ALIGN, LARGEST_SCALE
from ..core.magnitude import FLOAT32_MAX, first_beyond, within
from ..core.weights import MOST_LOST, energy, lost_energy, quantise_groups
from ..errors import CheckpointError, FormError
from ..formats.packed import Stored
from ..formats.source import Tensors
from ..forms import AnyForm
from ..spec.ops import Array
from .plan import EMBEDDING, HEAD, NORM, columns_of, gate_up_names, layer_names, plan, qkv_names
from .weights import ModelWeights

SLICE = 1 << 22  # weights that all threads together read and pack at a time
_PIECE = 1 << 20  # weights that one thread takes at most: they stay in the processor's cache until they are packed
_BF16 = np.dtype(ml_dtypes.bfloat16)
_BF16_LIMIT = float(np.array(0x7F7F7FFF, np.uint32).view(np.float32))  # beyond it, float32 is rounded to infinity
_ROWS = 1 << 10  # of a tensor that are read at a time to find a bad weight

Progress = Callable[[float], object]


def pack_weights(
    config: Config, weights: Tensors | Mapping[str, Array], form: str, threads: int, progress: Progress | None = None
) -> ModelWeights:
    """Pack all tensors of a model, in one piece of memory: see `packed_tensors`."""

    def packed(allocate: Callable[[int], Array]) -> Iterator[tuple[str, Packed | Array]]:
        return packed_tensors(config, weights, form, threads, progress, allocate)

    return in_one_piece(config, form, packed)


def in_one_piece(
    config: Config, form: AnyForm, packed: Callable[[Callable[[int], Array]], Iterator[tuple[str, Packed | Array]]]
) -> ModelWeights:
    """Return the weights that `packed` yields, with memory from the function that it is given."""
    sizes = [stored.nbytes + ALIGN for stored in plan(config, form).values() if len(stored.shape) == 2]
    # The system gives large pages to large pieces: they cost less to fill, and fewer look-ups when they are read.
    memory, used = core.aligned(sum(sizes)), 0

    def allocate(size: int) -> Array:
        nonlocal used
        begin, used = used, used - -size // ALIGN * ALIGN
        return memory[begin : begin + size]

    return ModelWeights.of(config, form, dict(packed(allocate)))


def packed_tensors(
    config: Config,
    weights: Tensors | Mapping[str, Array],
    form: str,
    threads: int,
    progress: Progress | None = None,
    allocate: Callable[[int], Array] = core.aligned,
) -> Iterator[tuple[str, Packed | Array]]:
    """Yield the tensors of `plan`, one after another, packed from floats.

    The head comes first, or follows the embedding.

    weights   a source's tensors, or name -> array
    progress  called with the number of weights read since its last call
    allocate  returns so many bytes of memory for a matrix

    Two matrices are held at a time, besides small ones, to keep the threads busy. The form bf16 keeps the upper half of
    each float32. Raises CoreError if the lower half of a matrix's weight is not zero: no precision is lost silently.
    Raises CheckpointError for a weight that is not finite, with its tensor and its place. Raises FormError for one that
    is too large for its format, and for a tensor with weights that are too small for it.
    """
    tensors = weights if isinstance(weights, Tensors) else _Arrays(weights)
    with Packer(config, tensors, form, threads, allocate) as packer:
        yield from packer.tensors(progress)


@dataclass
class Job:
    """Tensors that threads are filling, and the pieces of that work. Each piece returns the weights that it read."""

    tensors: dict[str, Packed | Array]
    pieces: list[Future[int]]
    check: Callable[[], None] | None = None

    def finish(self, progress: Progress | None) -> Iterator[tuple[str, Packed | Array]]:
        """Wait for the pieces, report them, check the whole, and yield the tensors."""
        for piece in self.pieces:
            count = piece.result()
            if progress is not None:
                progress(count)
        if self.check is not None:
            self.check()
        yield from self.tensors.items()


@dataclass(frozen=True)
class _Rows:
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


class _Losses:
    """The energy that each tensor of a matrix loses by weights too small for their scales; threads add to it.

    lost   for each tensor: see `lost_energy`
    least  less than the energy of each tensor
    """

    def __init__(self, rows: _Rows, codes: str) -> None:
        self.lost, self.least = np.zeros(len(rows.names)), np.zeros(len(rows.names))
        self._rows, self._lock = rows, threading.Lock()
        self._half = core.LARGEST.get(codes, 0) / LARGEST_SCALE / 2  # of the largest level

    def add(self, begin: int, packed: tuple[Array, Array | None] | None) -> None:
        """Add rows from `begin` on, which were packed: their scales, and their `lost_energy`. None: without scales."""
        if packed is None:
            return
        scale, lost = packed
        wide = scale.astype(np.float32)
        # A group's largest weight is near the largest level times its scale.
        least = self._rows.by_name(begin, np.einsum("nm,nm->n", wide, wide) * self._half**2)
        with self._lock:
            self.least += least
            if lost is not None:
                self.lost += self._rows.by_name(begin, lost)


class Packer:
    """A pool of threads that read and pack the matrices of a model."""

    def __init__(
        self, config: Config, tensors: Tensors, form: AnyForm, threads: int, allocate: Callable[[int], Array]
    ) -> None:
        self._config, self._tensors, self._threads, self._allocate = config, tensors, threads, allocate
        self._form, self._plan = form, plan(config, form)
        self._pool = ThreadPoolExecutor(threads)
        self._thread = threading.local()

    def __enter__(self) -> Packer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)  # an error or Ctrl-C waits only for the pieces that have begun

    def tensors(self, progress: Progress | None) -> Iterator[tuple[str, Packed | Array]]:
        """Yield all tensors, one after another. Few are held at a time: the caller may drop those that it has."""
        waiting: deque[Job] = deque()
        for job in self.jobs():
            waiting.append(job)
            # Enough pieces wait behind the first job to keep all threads busy until it is finished.
            while sum(len(later.pieces) for later in waiting) - len(waiting[0].pieces) >= 2 * self._threads:
                yield from waiting.popleft().finish(progress)
        for job in waiting:
            yield from job.finish(progress)

    def jobs(self) -> Iterator[Job]:
        """Start the jobs of all tensors. Each begins when the caller asks for it."""
        config = self._config
        if EMBEDDING in self._plan:
            yield self._embedding()
        if EMBEDDING not in self._plan or not config.tie_word_embeddings:
            yield self._matrix(HEAD, self._joined([config.head_name]))
        for i in range(config.L):
            path = f"model.layers.{i}."
            norm, qkv, bias, o, post_norm, gate_up, down = layer_names(i)
            yield self._vector(norm, [norm])
            yield self._matrix(qkv, self._joined(qkv_names(i)))
            yield self._vector(bias, [f"{path}self_attn.{name}_proj.bias" for name in "qkv"])
            yield self._matrix(o, self._joined([o]))
            yield self._vector(post_norm, [post_norm])
            yield self._matrix(gate_up, self._gate_up(*gate_up_names(i)))
            yield self._matrix(down, self._joined([down]))
        yield self._vector(NORM, [NORM])

    def _vector(self, result: str, names: Sequence[str]) -> Job:
        vector, rows = np.empty(self._plan[result].shape, np.float32), self._joined(names)
        piece = Future[int]()
        piece.set_result(rows.fill(0, len(vector), vector))
        self._check(vector, rows, FLOAT32_MAX)
        return Job({result: vector}, [piece])

    def _matrix(self, name: str, rows: _Rows) -> Job:
        whole, limit = self._empty(name), _limit(self._plan[name])
        losses = _Losses(rows, whole.format.codes)

        def piece(begin: int, end: int) -> int:
            out = self._scratch((end - begin, whole.shape[1]), rows.dtype)
            count = rows.fill(begin, end, out)
            self._check(out, rows, limit)
            losses.add(begin, _pack(out, whole.rows(begin, end)))
            return count

        return Job({name: whole}, self._start(whole.shape, piece), lambda: self._check_losses(losses, rows, whole))

    def _embedding(self) -> Job:
        """Read the embedding. If the head is tied to it, pack the head from the same rows, in another format."""
        stored, rows = self._plan[EMBEDDING], self._joined([EMBEDDING])
        dtype = np.dtype(np.float32) if stored.dtype == "F32" else _BF16
        array = self._allocate(stored.nbytes).view(dtype).reshape(stored.shape)
        head = self._empty(HEAD) if self._config.tie_word_embeddings else None
        limit = min(_limit(stored), _limit(self._plan[HEAD]) if head is not None else FLOAT32_MAX)
        losses = None if head is None else _Losses(rows, head.format.codes)

        def piece(begin: int, end: int) -> int:
            of_array = array[begin:end]
            out = of_array if rows.dtype == dtype else self._scratch(of_array.shape, rows.dtype)
            count = rows.fill(begin, end, out)
            self._check(out, rows, limit)
            if out is not of_array:
                _copy(of_array, out)
            if head is not None and losses is not None:
                losses.add(begin, _pack(out, head.rows(begin, end)))
            return count

        tensors: dict[str, Packed | Array] = {EMBEDDING: array if stored.dtype == "F32" else array.view(np.uint16)}
        if head is None or losses is None:
            return Job(tensors, self._start(stored.shape, piece))
        pieces = self._start(stored.shape, piece)
        return Job(tensors | {HEAD: head}, pieces, lambda: self._check_losses(losses, rows, head))

    def _empty(self, name: str) -> Packed:
        """Return a packed weight whose rows are still to be written."""
        stored = self._plan[name]
        assert stored.format is not None
        shape, columns = (stored.shape[0], stored.shape[1]), columns_of(self._config, self._form, name)
        return Packed(stored.format, self._allocate(stored.nbytes), shape, columns)

    def _start(self, shape: tuple[int, ...], piece: Callable[[int, int], int]) -> list[Future[int]]:
        """Let threads call piece(begin, end) for all rows of a matrix, a multiple of 64 rows at a time.

        A thread takes several pieces at once, because each hand-over between threads costs time.
        """
        N, K = shape

        def rows_of(weights: int) -> int:
            return max(2 * PANEL, weights // K // (2 * PANEL) * 2 * PANEL)

        share = rows_of(SLICE // self._threads)
        step = min(share, rows_of(_PIECE))

        def pieces(begin: int, end: int) -> int:
            return sum(piece(first, min(first + step, end)) for first in range(begin, end, step))

        return [self._pool.submit(pieces, begin, min(begin + share, N)) for begin in range(0, N, share)]

    def _check(self, weights: Array, rows: _Rows, limit: float) -> None:
        """Raise CheckpointError if a weight is beyond +-limit. Its place is looked for only then."""
        if within(weights, limit):
            return
        for name in rows.names:
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
        problem = f"overflow when the swiglu_beta of {self._config.swiglu_beta:g} is folded into them"
        raise CheckpointError(None, ", ".join(rows.names), problem)

    def _check_losses(self, losses: _Losses, rows: _Rows, packed: Packed) -> None:
        """Raise FormError if a tensor loses too much of its energy in weights too small for the scales of its format.

        The energy of the whole tensor is computed only where it may be too little: it costs a second reading.
        """
        codes, (N, K) = packed.format.codes, packed.shape
        if codes not in MOST_LOST or not np.any(losses.lost > MOST_LOST[codes] * losses.least):
            return
        whole = np.zeros(len(rows.names))
        for begin in range(0, N, _ROWS):
            out = np.empty((min(_ROWS, N - begin), K), rows.dtype)
            rows.fill(begin, begin + len(out), out)
            whole += rows.by_name(begin, energy(out))
        for name, lost, of_all in zip(rows.names, losses.lost, whole, strict=True):
            if lost > MOST_LOST[codes] * of_all:
                problem = f"has weights too small for the scales of {codes}, which would lose them: take bf16 or fp32"
                raise FormError(self._tensors.file(name), name, problem)

    def _scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return memory of this thread: its next call overwrites it. Fresh pages would cost more than reading."""
        size = math.prod(shape) * dtype.itemsize
        if len(getattr(self._thread, "memory", ())) < size:
            self._thread.memory = core.aligned(size)
        scratch: Array = self._thread.memory[:size].view(dtype).reshape(shape)
        return scratch

    def _joined(self, names: Sequence[str]) -> _Rows:
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
        return _Rows(names, self._dtype(names), fill, lambda rows: np.searchsorted(ends, rows, "right"))

    def _gate_up(self, gate: str, up: str) -> _Rows:
        """Return the rows of gate_proj and up_proj as `core.interleave` orders them; `begin` is a multiple of 64.

        A beta means silu(beta g) u / beta. It is folded into the weights.
        """
        beta, (F, _) = np.float32(self._config.swiglu_beta), self._tensors.shape(gate)

        def fill(begin: int, end: int, out: Array) -> int:
            first, last = begin // 2, min(end // 2, F)
            pairs = out.reshape(-1, 2, PANEL, out.shape[1])
            rest = (last - first) % PANEL
            if rest:
                pairs[-1, :, rest:] = 0
            count = 0
            for i, name in enumerate((gate, up)):
                panels = list(pairs[:, i])
                if rest:
                    panels[-1] = panels[-1][:rest]
                count += self._read(name, first, panels)
            if beta != 1:
                with np.errstate(all="ignore"):
                    pairs[:, 0] *= beta
                    pairs[:, 1] /= beta
            return count

        dtype = np.dtype(np.float32) if beta != 1 else self._dtype([gate, up])
        return _Rows([gate, up], dtype, fill, lambda rows: rows // PANEL % 2)

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
                _copy(of_part, rows[start : start + len(part)])
                if columns:
                    part[:, columns[0] :] = 0
                start += len(part)
        self._tensors.forget(name, begin, end)
        return (end - begin) * math.prod(columns)


def _limit(stored: Stored) -> float:
    """Return the largest magnitude that a format holds; a larger one would be cut, or become infinity."""
    if stored.format is None:
        return FLOAT32_MAX if stored.dtype == "F32" else _BF16_LIMIT
    return core.LARGEST.get(stored.format.codes, FLOAT32_MAX)


def _copy(out: Array, rows: Array) -> None:
    """Copy floats to another dtype. NaN and infinity pass silently: they were looked for, or will be."""
    with np.errstate(all="ignore"):
        out[:] = rows


def _pack(rows: Array, out: Packed) -> tuple[Array, Array | None] | None:
    """Pack rows of floats (float32, float16 or bfloat16) into `out` -> scales, and `lost_energy`, of q4 and q8."""
    codes = out.format.codes
    if codes in core.LARGEST:
        given = rows.view(np.uint16) if rows.dtype == _BF16 else rows
        _, code, scale = quantise_groups(given, codes, out=out)
        return scale, lost_energy(codes, rows, code, scale)
    if codes == "bf16" and rows.dtype != _BF16:
        whole = np.ascontiguousarray(rows, np.float32)
        if np.any(whole.view(np.uint32) & 0xFFFF):
            raise core.CoreError(None, "weights", "are not bfloat16 in this checkpoint: take fp32, q8 or q4")
        rows = (whole.view(np.uint32) >> 16).astype(np.uint16)
    elif rows.dtype == _BF16:
        rows = rows.astype(np.float32) if codes == "fp32" else rows.view(np.uint16)
    core.quantise(rows, codes, out=out, checked=True)
    return None


class _Arrays:
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
        if dtype.kind != "f" and dtype != _BF16:
            raise CheckpointError(None, name, f"must be floats, got {dtype.name}")
        return dtype if dtype in (np.float32, np.float16, _BF16) else np.dtype(np.float32)

    def rows(self, name: str, begin: int, end: int) -> Array:
        rows: Array = self._arrays[name][begin:end]
        return rows

    def read_into(self, name: str, begin: int, out: Sequence[Array]) -> None:
        for part in out:
            _copy(part, self._arrays[name][begin : begin + len(part)])
            begin += len(part)

    def file(self, name: str) -> None:
        """Return None: the arrays are in no file."""

    def check_finite(self, progress: Callable[[int], object] | None = None) -> None:
        """Do nothing: the arrays are looked at while they are packed."""

    def forget(self, name: str, begin: int, end: int) -> None:
        """Do nothing: the arrays are the caller's."""
