"""The fast path as a backend: the spec's forward pass on the C core, one call for each layer."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import core
from ...config import Config
from ...core import attention
from ...core.layer import Layer
from ...core.ops import rope_frequencies, rope_tables
from ...errors import NonFiniteError
from ...footprint import human
from ...numerics.engine import key_biases
from ...spec.ops import Array, Tap
from .. import thread
from ..cache import empty_caches
from ..weights import WeightStore
from . import Ids, Progress, Step, checked_length, checked_steps

CHUNK = 512  # tokens of a prompt at a time: enough to multiply each weight at full speed once it has been read
SHORT = 1 << 26  # products, about a millisecond: the calling thread computes what needs fewer
FILLED = 1024  # positions that `fill` writes at a time


class Sequence:
    """The caches of all layers. `rollback` moves `length` alone: later tokens overwrite what lies beyond it."""

    def __init__(self, layers: list[Layer], threads: int, done: Callable[[list[Layer]], object], new=None) -> None:
        self.layers, self.length, self._threads, self._new = layers, 0, threads, new
        self._filled = 0  # positions that hold keys and values of `fill`, or of tokens that came after it
        weakref.finalize(self, done, layers)

    def rollback(self, length: int) -> None:
        self.length = checked_length(length, self.length)

    def fork(self, length: int) -> Sequence:
        checked_length(length, self.length)
        other = self._new()
        for to, layer in zip(other.layers, self.layers, strict=True):
            to.kv.buffer[:] = layer.kv.buffer
        other.length = length
        return other

    def fill(self, length: int, rng: np.random.Generator) -> None:
        kv = self.layers[0].kv
        k, v = rng.standard_normal((2, FILLED, kv.K, kv.E), np.float32)
        for start in range(self._filled, length, FILLED):
            new = min(FILLED, length - start)
            for layer in self.layers:
                attention.append(layer.kv, k[:new], v[:new], start, threads=self._threads)
        self._filled = max(self._filled, length)
        self.length = length


class CoreBackend:
    """Packed weights, and caches for as many sequences as are in use. See `Backend`."""

    chunk = CHUNK
    tensors: Mapping[str, Array] | None = None

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
        context  positions that a sequence can hold: its memory is reserved at once
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
        self._unused: list[list[Layer]] = []  # caches of sequences that are gone
        self._lock = threading.Lock()

    @property
    def streams(self) -> bool:
        return self.weights.streamed > 0

    @property
    def description(self) -> str:
        where = f" ({human(self.weights.streamed)} of them read in each pass)" if self.streams else ""
        return f"core, weights {self.form}{where}, KV cache {self.kv}, {self.isa}, {self.threads} threads"

    def sequence(self) -> Sequence:
        with self._lock:
            layers = self._unused.pop() if self._unused else None
        return Sequence(layers or self._new_layers(), self.threads, self._unused.append, self.sequence)

    @functools.cached_property
    def _key_biases(self) -> Listed[attention.KeyBias | None]:
        config = self.config
        if self.kv != "int8":
            return [None] * config.L
        heads = (config.H + config.K) * config.E  # of queries and keys
        biases = key_biases(config, [layer.qkv_bias[:heads] for layer in self.weights.layers], rope_tables)
        return [attention.KeyBias.of(bias, self.context, config.K, config.E) for bias in biases]

    def _new_layers(self) -> list[Layer]:
        config = self.config
        caches = empty_caches(config, self.kv, self.context, self._key_biases)
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
        """Run steps layer by layer. `tap` sees the first step alone."""
        ids, L = checked_steps(steps, self.config, self.context), self.config.L
        tokens = sum(map(len, ids))

        def compute(stop: core.Stop | None, threads: int) -> list[Array]:
            works = [self._work(each, step) for each, step in zip(ids, steps, strict=True)]
            if tap is not None:
                tap("model.embed_tokens", works[0].x)
            with self.weights.reading(stop) as ready:
                for i in range(L):
                    ready(i)
                    for work in works:
                        work.layer(i, self.isa, threads, stop)
                    if tap is not None:
                        tap(f"model.layers.{i}.resid_post", works[0].wanted if i == L - 1 else works[0].x)
                    if progress is not None:
                        progress(tokens / L)
                logits = self._logits([work.wanted for work in works], ready, threads, stop)
            if tap is not None:
                tap("lm_head", logits[0])
            return logits

        if self._products * tokens < SHORT and not self.streams:
            logits = compute(None, 1)
        else:
            logits = thread.call(lambda stop: compute(stop, self.threads))
        for step, each in zip(steps, ids, strict=True):
            step.sequence.length += len(each)
        return logits

    def _work(self, ids: Array, step: Step) -> _Work:
        position = step.sequence.length
        positions = np.arange(position, position + len(ids))
        cos, sin = rope_tables(self._inv_freq, self.config.rope.attention_scaling, positions)
        return _Work(np.ascontiguousarray(self.weights.embed(ids)), cos, sin, position, step)

    def _logits(
        self, wanted: Listed[Array], ready: Callable[[int], None], threads: int, stop: core.Stop | None
    ) -> list[Array]:
        """Arrays [n, D] -> logits [n, V] of each: one product of all rows with each piece of the head."""
        x = wanted[0] if len(wanted) == 1 else np.concatenate(wanted)
        pieces, begin = self.weights.head_pieces, 0
        how: dict[str, Any] = {"norm": self.weights.norm, "eps": self.config.rms_norm_eps}
        how |= {"isa": self.isa, "threads": threads, "stop": stop}
        if len(pieces) == 1:
            ready(self.config.L)
            whole = core.matmul(x, pieces[0], **how)
        else:
            whole = np.empty((len(x), self.config.V), np.float32)
            for i, piece in enumerate(pieces):
                ready(self.config.L + i)
                whole[:, begin : begin + piece.shape[0]] = core.matmul(x, piece, **how)
                begin += piece.shape[0]
        return [whole] if len(wanted) == 1 else np.split(whole, np.cumsum([len(rows) for rows in wanted])[:-1])


@dataclass(frozen=True)
class _Work:
    """A step while it is computed: its residual stream x [T, D], and RoPE's tables of its positions."""

    x: Array
    cos: Array
    sin: Array
    position: int
    step: Step

    @property
    def wanted(self) -> Array:
        return self.x[self.step.rows]

    def layer(self, i: int, isa: str, threads: int, stop: core.Stop | None) -> None:
        """Compute a layer. The last one leaves out the rows before the first that is wanted."""
        layers = self.step.sequence.layers
        first = self.step.rows.indices(len(self.x))[0] if i == len(layers) - 1 else 0
        try:
            layers[i].step(self.x, self.cos, self.sin, self.position, isa, threads, stop, first)
        except core.OutOfRange as problem:
            raise NonFiniteError(None, f"layer {i}", problem.problem) from None
