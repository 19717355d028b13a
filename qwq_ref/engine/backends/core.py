"""The fast path as a backend: the spec's forward pass on the C core, one call for each layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Listed
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ... import core
from ...config import Config
from ...core import attention
from ...core.attention import PAGE, pages_of
from ...core.layer import Layer, Part, Parts
from ...core.ops import rope_frequencies, rope_tables
from ...errors import NonFiniteError, UsageError
from ...footprint import human
from ...numerics.engine import key_biases
from ...spec.ops import Array, Tap
from .. import thread
from ..digest import digest
from ..pages import Pool, Table
from ..weights import WeightStore
from . import Ids, Progress, Step, checked_length, checked_steps

CHUNK = 512  # tokens of a prompt at a time: enough to multiply each weight at full speed once it has been read
SHORT = 1 << 26  # products, about a millisecond: the calling thread computes what needs fewer
FILLED = 1024  # positions that `fill` writes at a time


class Sequence:
    """The KV caches of all layers, in pages. Later tokens overwrite the rest of a page that was rolled back in part."""

    def __init__(self, backend: CoreBackend, table: Table, length: int = 0) -> None:
        self.table, self.length, self._backend = table, length, backend
        self._filled = 0  # positions that hold keys and values of `fill`, or of tokens that came after it

    def rollback(self, length: int) -> None:
        self.length = checked_length(length, self.length)
        self.table.cut(length)
        self._filled = min(self._filled, pages_of(length) * PAGE)

    def fork(self, length: int) -> Sequence:
        checked_length(length, self.length)
        return Sequence(self._backend, self.table.fork(length), length)

    def fill(self, length: int, rng: np.random.Generator) -> None:
        config = self._backend.config
        k, v = rng.standard_normal((2, FILLED, config.K, config.E), np.float32)
        self.table.prepare(self.length, max(0, length - self.length))
        for start in range(self._filled, length, FILLED):
            new = min(FILLED, length - start)
            for kv in self._backend.caches(self.table):
                attention.append(kv, k[:new], v[:new], start, threads=self._backend.threads)
        self._filled = max(self._filled, length)
        self.length = length


class CoreBackend:
    """Packed weights, and caches for as many sequences as are in use. See `Backend`."""

    chunk = CHUNK
    tensors: Mapping[str, Array] | None = None
    first = 0  # the number of its first layer in the model, see `stage`
    ends = True  # whether the last layer of the model, and the head, are its own

    def __init__(
        self,
        config: Config,
        weights: WeightStore,
        context: int,
        kv: str = "fp32",
        isa: str | None = None,
        threads: int = 1,
    ) -> None:
        """
        context  positions that a sequence can hold: it takes memory as it grows
        kv       "fp32" or "int8"
        isa      None: the best that the processor can run. Results are identical with each
        threads  of each long call. Results are identical with any number
        """
        self.config, self.weights, self.context, self.kv = config, weights, context, kv
        self.form = str(weights.form)
        self.isa, self.threads = core.chosen_isa(isa), threads
        self._inv_freq = rope_frequencies(config.rope, config.E)
        matrices = [packed for layer in weights.layers for packed in layer] + [*weights.head_pieces]
        self._products = sum(N * K for N, K in (packed.shape for packed in matrices))  # for a token
        self.pool = Pool(config.L * attention.page_bytes(kv, config.K, config.E))

    @property
    def streams(self) -> bool:
        return self.weights.streamed > 0

    @property
    def description(self) -> str:
        where = f" ({human(self.weights.streamed)} of them read in each pass)" if self.streams else ""
        return f"core, weights {self.form}{where}, KV cache {self.kv}, {self.isa}, {self.threads} threads"

    def sequence(self) -> Sequence:
        return Sequence(self, Table(self.pool, self.context))

    def caches(self, table: Table) -> list[attention.KV]:
        """Return the caches of all layers in the pages of a table."""
        c = self.config
        part, pages = self.pool.bytes // c.L, table.addresses
        return [
            attention.KV(self.kv, pages, self.context, c.K, c.E, bias, i * part)
            for i, bias in enumerate(self._key_biases)
        ]

    @functools.cached_property
    def _identity(self) -> dict[str, str]:
        if self.streams:
            raise UsageError(None, "session", "cannot be saved or loaded where --max-memory leaves weights on the disk")
        weights, arrays = self.weights, [self.weights.norm]
        for layer in weights.layers:
            arrays += [layer.input_norm, layer.qkv_bias, layer.post_norm, *(packed.packed for packed in layer)]
        arrays += [piece.packed for piece in weights.head_pieces]
        forms = {"backend": "core", "weights form": self.form, "KV cache": self.kv}
        return forms | {"model": digest(self.config, arrays)}

    def identity(self) -> dict[str, str]:
        return self._identity

    def arrays(self, sequence: Sequence) -> list[Array]:
        """Behind the last position, a page holds zeros: what lies there may be of another conversation."""
        length, table = sequence.length, sequence.table
        pages = pages_of(length)
        rest = pages * PAGE - length
        zeros = np.zeros((rest, self.config.K, self.config.E), np.float32)
        table.prepare(length, rest)
        for kv in self.caches(table) if rest else ():
            attention.append(replace(kv, capacity=pages * PAGE), zeros, zeros, length, threads=self.threads)
        return [table.bytes_of(i) for i in range(pages)]

    def array_shapes(self, length: int) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        return [((self.pool.bytes,), np.dtype(np.uint8))] * pages_of(length)

    def restored(self, length: int, fill: Callable[[Listed[Array]], None]) -> Sequence:
        table = Table(self.pool, self.context)
        table.prepare(0, length)
        fill([table.bytes_of(i) for i in range(pages_of(length))])
        return Sequence(self, table, length)

    def limit_memory(self, size: int) -> None:
        self.pool.limit = max(pages_of(self.context), size // self.pool.bytes)

    def missing(self, steps: Listed[Step]) -> float:
        more: float = sum(step.sequence.table.missing(step.sequence.length, len(step.ids)) for step in steps)
        return max(0, more - self.pool.left)

    @functools.cached_property
    def _key_biases(self) -> Listed[attention.KeyBias | None]:
        config = self.config
        if self.kv != "int8":
            return [None] * config.L
        heads = (config.H + config.K) * config.E  # of queries and keys
        biases = key_biases(config, [layer.qkv_bias[:heads] for layer in self.weights.layers], rope_tables)
        return [attention.KeyBias.of(bias, self.context, config.K, config.E) for bias in biases]

    @functools.cached_property
    def layers(self) -> list[Layer]:
        """The layers of the model, for all sequences."""
        config, caches = self.config, self.caches(Table(self.pool, self.context))
        return [
            Layer(layer, cache, config.H, config.rms_norm_eps, config.window(i))
            for i, (layer, cache) in enumerate(zip(self.weights.layers, caches, strict=True))
        ]

    def run(
        self, ids: Ids, sequence: Sequence, rows: slice, tap: Tap | None = None, progress: Progress | None = None
    ) -> Array:
        return self._run([Step(ids, sequence, rows)], tap, progress)[0]

    def run_together(self, steps: Listed[Step], progress: Progress | None = None) -> list[Array]:
        return self._run(steps, None, progress)

    def _run(self, steps: Listed[Step], tap: Tap | None, progress: Progress | None) -> list[Array]:
        """Run steps through all layers and the head. `tap` sees the first step alone."""
        logits = self._through(steps, None, tap, progress)
        counts = [len(range(len(step.ids))[step.rows]) for step in steps]
        return np.split(logits, np.cumsum(counts)[:-1])

    def _through(
        self, steps: Listed[Step], x: Array | None, tap: Tap | None = None, progress: Progress | None = None
    ) -> Array:
        """Run steps layer by layer -> the logits [rows, V] of all, or the residual stream [T, D] without a head.

        x  float32 [T, D]: the residual stream before the first layer here; None: of the embedding
        """
        ids, L = checked_steps(steps, self.config, self.context), self.config.L
        tokens = sum(map(len, ids))

        def compute(stop: core.Stop | None, threads: int) -> Array:
            works, begin = [], 0
            for some, of_these in _grouped(ids, steps):
                end = begin + sum(map(len, some))
                works.append(self._work(some, of_these, None if x is None else x[begin:end]))
                begin = end
            with self.weights.reading(stop) as ready:
                if tap is not None and x is None:
                    tap("model.embed_tokens", works[0].x)
                for i, layer in enumerate(self.layers):
                    ready(i)
                    for work in works:
                        is_last = self.ends and i == L - 1
                        work.run(self.first + i, layer, is_last, self.isa, threads, stop)
                    if tap is not None:
                        tap(f"model.layers.{self.first + i}.resid_post", works[0].x)
                    if progress is not None:
                        progress(tokens / L)
                if not self.ends:
                    return works[0].x if len(works) == 1 else np.concatenate([work.x for work in works])
                logits = self._logits([work.x for work in works], ready, threads, stop)
            if tap is not None:
                tap("lm_head", logits)
            return logits

        for step, each in zip(steps, ids, strict=True):
            step.sequence.table.prepare(step.sequence.length, len(each))
        if self._products * tokens < SHORT and not self.streams:
            logits = compute(None, 1)
        else:
            logits = thread.call(lambda stop: compute(stop, self.threads))
        for step, each in zip(steps, ids, strict=True):
            step.sequence.length += len(each)
        return logits

    def _work(self, ids: Listed[Array], steps: Listed[Step], x: Array | None) -> _Work:
        starts = [step.sequence.length for step in steps]
        positions = np.concatenate([np.arange(p, p + len(each)) for p, each in zip(starts, ids, strict=True)])
        cos, sin = rope_tables(self._inv_freq, self.config.rope.attention_scaling, positions)
        parts, last, counts = [], [], []
        for step, each, position in zip(steps, ids, starts, strict=True):
            chosen = range(len(each))[step.rows]
            part = Part(step.sequence.table.addresses, self.context, position, len(each))
            parts.append(part)
            last.append(replace(part, first=chosen[0] if chosen else len(each)))
            counts.append(len(chosen))
        x = np.ascontiguousarray(self.weights.embed(np.concatenate(ids))) if x is None else np.array(x)
        return _Work(x, cos, sin, Parts(parts), Parts(last), [step.rows for step in steps], counts)

    def _logits(
        self, wanted: Listed[Array], ready: Callable[[int], None], threads: int, stop: core.Stop | None
    ) -> Array:
        """Arrays [n, D] -> logits [n of all, V]: one product of all rows with each piece of the head."""
        x = wanted[0] if len(wanted) == 1 else np.concatenate(wanted)
        pieces, begin = self.weights.head_pieces, 0
        how: dict[str, Any] = {"norm": self.weights.norm, "eps": self.config.rms_norm_eps}
        how |= {"isa": self.isa, "threads": threads, "stop": stop}
        if len(pieces) == 1:
            ready(self.config.L)
            return core.matmul(x, pieces[0], **how)
        whole = np.empty((len(x), self.config.V), np.float32)
        for i, piece in enumerate(pieces):
            ready(self.config.L + i)
            whole[:, begin : begin + piece.shape[0]] = core.matmul(x, piece, **how)
            begin += piece.shape[0]
        return whole


def _grouped(ids: Listed[Array], steps: Listed[Step]) -> Iterator[tuple[list[Array], list[Step]]]:
    """Yield steps, and their ids, that go through a layer as one: up to `CHUNK` tokens, or one step of more."""
    begin = tokens = 0
    for i, each in enumerate(ids):
        if i > begin and tokens + len(each) > CHUNK:
            yield [*ids[begin:i]], [*steps[begin:i]]
            begin, tokens = i, 0
        tokens += len(each)
    yield [*ids[begin:]], [*steps[begin:]]


@dataclass
class _Work:
    """Steps while they are computed.

    x         residual stream: [T, D] of all tokens, at the end [n, D] of those whose logits are wanted
    cos, sin  [T, E/2]
    parts     of each layer but the last; `last`: without the rows in front of the wanted ones
    rows      of each step that are wanted; `counts`: their numbers
    """

    x: Array
    cos: Array
    sin: Array
    parts: Parts
    last: Parts
    rows: list[slice]
    counts: list[int]

    def run(self, i: int, layer: Layer, is_last: bool, isa: str, threads: int, stop: core.Stop | None) -> None:
        """Compute layer i."""
        try:
            layer.step(self.x, self.last if is_last else self.parts, self.cos, self.sin, isa, threads, stop)
        except core.OutOfRange as problem:
            raise NonFiniteError(None, f"layer {i}", problem.problem) from None
        if is_last:
            self.x = self.x[: self.last.wanted]
            if sum(self.counts) < len(self.x):
                self.x = self._chosen()

    def _chosen(self) -> Array:
        """Return the rows of x that are wanted, of those from the first wanted one of each step."""
        found, begin = [], 0
        for rows, part in zip(self.rows, self.last.parts, strict=True):
            chosen = range(part.T)[rows]
            found += [begin + t - part.first for t in chosen]
            begin += part.T - part.first
        return self.x[found]
