"""The fast path as a backend: the spec's forward pass on the C core, one call for each layer."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Listed

import numpy as np

from ... import core
from ...config import Config
from ...core import attention
from ...core.layer import Layer
from ...core.ops import rope_frequencies, rope_tables
from ...errors import NonFiniteError
from ...numerics.engine import key_biases
from ...spec.ops import Array, Tap
from .. import thread
from ..cache import empty_caches
from ..weights import ModelWeights, embed
from . import Ids, Progress, checked_ids, checked_length

CHUNK = 512  # tokens of a prompt at a time: enough to multiply each weight at full speed once it has been read
SHORT = 1 << 26  # products, about a millisecond: the calling thread computes what needs fewer
FILLED = 1024  # positions that `fill` writes at a time


class Sequence:
    """The caches of all layers. `rollback` moves `length` alone: later tokens overwrite what lies beyond it."""

    def __init__(self, layers: list[Layer], threads: int, done: Callable[[list[Layer]], object]) -> None:
        self.layers, self.length, self._threads = layers, 0, threads
        self._filled = 0  # positions that hold keys and values of `fill`, or of tokens that came after it
        weakref.finalize(self, done, layers)

    def rollback(self, length: int) -> None:
        self.length = checked_length(length, self.length)

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
        weights: ModelWeights,
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
        matrices = [packed for layer in weights.layers for packed in layer] + [weights.head]
        self._products = sum(N * K for N, K in (packed.shape for packed in matrices))  # for a token
        self._unused: list[list[Layer]] = []  # caches of sequences that are gone
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        return f"core, weights {self.form}, KV cache {self.kv}, {self.isa}, {self.threads} threads"

    def sequence(self) -> Sequence:
        with self._lock:
            layers = self._unused.pop() if self._unused else None
        return Sequence(layers or self._new_layers(), self.threads, self._unused.append)

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
        position = sequence.length
        ids = checked_ids(ids, self.config, position, self.context)
        last = len(sequence.layers) - 1

        def compute(stop: core.Stop | None, threads: int) -> Array:
            x = np.ascontiguousarray(embed(ids, self.weights.embedding))
            if tap is not None:
                tap("model.embed_tokens", x)
            positions = np.arange(position, position + len(ids))
            cos, sin = rope_tables(self._inv_freq, self.config.rope.attention_scaling, positions)
            for i, layer in enumerate(sequence.layers):
                first = rows.indices(len(ids))[0] if i == last else 0  # the last layer leaves out the rows before it
                try:
                    layer.step(x, cos, sin, position, self.isa, threads, stop, first)
                except core.OutOfRange as problem:
                    raise NonFiniteError(None, f"layer {i}", problem.problem) from None
                if tap is not None:
                    tap(f"model.layers.{i}.resid_post", x[rows] if i == last else x)
                if progress is not None:
                    progress(len(ids) / len(sequence.layers))
            norm, eps = self.weights.norm, self.config.rms_norm_eps
            logits = core.matmul(
                x[rows], self.weights.head, norm=norm, eps=eps, isa=self.isa, threads=threads, stop=stop
            )
            if tap is not None:
                tap("lm_head", logits)
            return logits

        if self._products * len(ids) < SHORT:
            logits = compute(None, 1)
        else:
            logits = thread.call(lambda stop: compute(stop, self.threads))
        sequence.length = position + len(ids)
        return logits
