"""The weights of a model as the core reads them: their names, formats and sizes, and how they are read or packed.

Large matrices are read and packed some rows at a time, in several threads, so that little more than the result is held.
A bfloat16 checkpoint that is packed as bf16 is never widened: its bits are read once and copied into panels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from .. import core
from ..config import Config
from ..core import Packed
from ..core.layer import LayerWeights
from ..footprint import parameters
from ..formats.packed import Stored
from ..formats.source import Source, Tensors
from ..spec.ops import Array
from .plan import EMBEDDING, HEAD, NORM, layer_names, model_bytes, plan

SLICE = 1 << 23  # weights that all threads together read and pack at a time
_PIECE = 1 << 20  # weights that one thread takes at most: its rows stay in the processor's cache until they are packed

Progress = Callable[[float], object]
Rows = Callable[[int, int], Array]  # (begin, end) -> rows of a matrix
_BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class ModelWeights:
    """All layers, the embedding [V, D] (float32, or bfloat16 as uint16), the last norm, the head."""

    form: str
    embedding: Array
    layers: list[LayerWeights]
    norm: Array
    head: Packed

    @classmethod
    def of(cls, config: Config, form: str, tensors: Mapping[str, Any]) -> ModelWeights:
        """Build the weights from tensors by the names of `plan`."""
        layers = [LayerWeights(*(tensors[name] for name in layer_names(i))) for i in range(config.L)]
        return cls(form, tensors[EMBEDDING], layers, tensors[NORM], tensors[HEAD])


def read_model(source: Source, form: str, threads: int, progress: Progress | None = None) -> ModelWeights:
    """Read a model's weights in one weight form: as they are if the source holds them packed, or else pack its floats.

    progress  called with the number of weights read since its last call, of `footprint.parameters`

    Raises CheckpointError; CoreError as `packed_tensors` does.
    """
    config = source.config
    if form not in source.forms:
        assert source.floats is not None
        return pack_weights(config, source.floats, form, threads, progress)
    share = parameters(config) / model_bytes(config, form)
    told = progress and (lambda count: progress(count * share))
    return ModelWeights.of(config, form, source.read_packed(form, plan(config, form), threads, told))


def pack_weights(
    config: Config, weights: Tensors | Mapping[str, Array], form: str, threads: int, progress: Progress | None = None
) -> ModelWeights:
    """Pack all tensors of a model: see `packed_tensors`."""
    return ModelWeights.of(config, form, dict(packed_tensors(config, weights, form, threads, progress)))


def packed_tensors(
    config: Config, weights: Tensors | Mapping[str, Array], form: str, threads: int, progress: Progress | None = None
) -> Iterator[tuple[str, Packed | Array]]:
    """Yield the tensors of `plan`, one after another, packed from floats. The head follows the embedding.

    weights   a source's tensors, or name -> array
    progress  called with the number of weights read since its last call

    The form bf16 keeps the upper half of each float32. Raises CoreError if the lower half of a matrix's weight is not
    zero: no precision is lost silently.
    """
    source = _Reader(weights if isinstance(weights, Tensors) else _Arrays(weights))
    planned = plan(config, form)

    def vector(name: str) -> Array:
        (size,) = source.shape(name)
        return np.array(source.read(name, 0, size), np.float32)

    def pack(name: str, rows: Rows) -> Packed:
        whole = _empty(planned[name])
        work.run(whole.shape, lambda begin, end: _pack(rows(begin, end), whole.rows(begin, end)))
        return whole

    def embedding(head: Packed | None) -> Array:
        """Read the embedding. If the head is tied to it, pack the head from the same rows."""
        stored = planned[EMBEDDING]
        dtype = np.dtype(np.float32) if stored.dtype == "F32" else _BF16
        array = core.aligned(stored.nbytes).view(dtype).reshape(stored.shape)
        in_place = source.dtype(EMBEDDING) == dtype

        def piece(begin: int, end: int) -> None:
            rows = source.read(EMBEDDING, begin, end, array[begin:end] if in_place else None)
            if not in_place:
                array[begin:end] = rows
            if head is not None:
                _pack(rows, head.rows(begin, end))

        work.run(stored.shape, piece)
        return array if dtype == np.float32 else array.view(np.uint16)

    with _Work(source, threads, progress) as work:
        if config.tie_word_embeddings:
            head = _empty(planned[HEAD])
            yield EMBEDDING, embedding(head)
        else:
            yield EMBEDDING, embedding(None)
            head = pack(HEAD, source.matrix(HEAD))
        yield HEAD, head
        del head
        for i in range(config.L):
            path = f"model.layers.{i}."
            names = layer_names(i)
            qkv = [f"{path}self_attn.{name}_proj" for name in "qkv"]
            yield names[0], vector(names[0])
            yield names[1], pack(names[1], source.joined([f"{name}.weight" for name in qkv]))
            yield names[2], np.concatenate([vector(f"{name}.bias") for name in qkv])
            yield names[3], pack(names[3], source.matrix(names[3]))
            yield names[4], vector(names[4])
            yield names[5], pack(names[5], source.gate_up(path, config.swiglu_beta))
            yield names[6], pack(names[6], source.matrix(names[6], planned[names[6]].shape[1]))
        yield NORM, vector(NORM)


def embed(ids: Any, embedding: Array) -> Array:
    """ids [T], embedding [V, D] -> float32 [T, D]"""
    rows: Array = embedding[ids]
    return rows if rows.dtype == np.float32 else rows.view(_BF16).astype(np.float32)


class _Arrays:
    """A dictionary of arrays as `Tensors`."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Array:
        return np.asarray(self._arrays[name], np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._arrays[name].shape)

    def dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(self._arrays[name].dtype)

    def rows(self, name: str, begin: int, end: int, out: Array | None = None) -> Array:
        rows: Array = self._arrays[name][begin:end]
        if out is None:
            return rows
        out[:] = rows
        return out

    def forget(self, name: str, begin: int, end: int) -> None:
        pass


class _Reader:
    """The rows of a model's matrices, in the dtype in which they are stored."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self.shape, self.dtype = tensors.shape, tensors.dtype
        self._thread = threading.local()

    def read(self, name: str, begin: int, end: int, out: Array | None = None) -> Array:
        """Return rows [begin, end) of a tensor, in `out` if given."""
        rows = self._tensors.rows(name, begin, end, out)
        self._tensors.forget(name, begin, end)
        self._thread.count = self.count() + rows.size
        return rows

    def count(self) -> int:
        """Return the number of weights that this thread has read."""
        return getattr(self._thread, "count", 0)

    def matrix(self, name: str, columns: int | None = None) -> Rows:
        """Return the rows of one tensor, with zeros up to so many columns."""

        def rows(begin: int, end: int) -> Array:
            w = self.read(name, begin, end)
            return w if columns in (None, w.shape[1]) else np.pad(w, ((0, 0), (0, columns - w.shape[1])))

        return rows

    def joined(self, names: list[str]) -> Rows:
        """Return the rows of several tensors, one tensor after another."""
        sizes = [self.shape(name)[0] for name in names]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]

        def rows(begin: int, end: int) -> Array:
            parts = []
            for name, start, size in zip(names, starts, sizes, strict=True):
                first, last = max(begin - start, 0), min(end - start, size)
                if first < last:
                    parts.append(self.read(name, first, last))
            return np.concatenate(parts)

        return rows

    def gate_up(self, path: str, beta: float) -> Rows:
        """Return the rows of gate_proj and up_proj in the order of `core.interleave`; `begin` is a multiple of 64.

        A beta means silu(beta g) u / beta, and is folded into the weights.
        """
        gate, up = f"{path}mlp.gate_proj.weight", f"{path}mlp.up_proj.weight"
        (F, _) = self.shape(gate)

        def rows(begin: int, end: int) -> Array:
            g, u = (self.read(name, begin // 2, min(end // 2, F)) for name in (gate, up))
            if beta != 1:
                g, u = g.astype(np.float32) * np.float32(beta), u.astype(np.float32) / np.float32(beta)
            return core.interleave(g, u)

        return rows


class _Work:
    """A pool of threads that pack matrices, some rows at a time. The calling thread hears of the progress."""

    def __init__(self, reader: _Reader, threads: int, progress: Progress | None) -> None:
        self._reader, self._threads, self._progress = reader, threads, progress
        self._pool = ThreadPoolExecutor(threads)

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)  # an error or Ctrl-C waits only for the pieces that have begun

    def run(self, shape: tuple[int, ...], piece: Callable[[int, int], None]) -> None:
        """Call piece(begin, end) for all rows of a matrix, a multiple of 64 rows at a time."""
        N, K = shape
        step = max(64, min(_PIECE, SLICE // self._threads) // K // 64 * 64)

        def call(begin: int) -> int:
            before = self._reader.count()
            with np.errstate(all="ignore"):  # NaN and infinity pass, as they do in a product
                piece(begin, min(begin + step, N))
            return self._reader.count() - before

        starts = range(0, N, step)
        alone = len(starts) == 1 or self._threads == 1
        for count in map(call, starts) if alone else self._pool.map(call, starts):
            if self._progress is not None:
                self._progress(count)


def _empty(stored: Stored) -> Packed:
    assert stored.format is not None
    return core.empty(stored.format, (stored.shape[0], stored.shape[1]))


def _pack(rows: Array, out: Packed) -> None:
    """Pack rows of floats (float32, float16 or bfloat16) into `out`."""
    codes = out.format.codes
    if codes == "bf16" and rows.dtype != _BF16:
        whole = np.ascontiguousarray(rows, np.float32)
        if np.any(whole.view(np.uint32) & 0xFFFF):
            raise core.CoreError(None, "weights", "are not bfloat16 in this checkpoint: take fp32, q8 or q4")
        rows = whole.astype(_BF16)
    if rows.dtype == _BF16:
        rows = rows.astype(np.float32) if codes == "fp32" else rows.view(np.uint16)
    core.quantise(rows, codes, out=out)
