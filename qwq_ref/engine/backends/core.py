"""The fast path: the spec's forward pass on the C core."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ... import core
from ...config import Config
from ...core.layer import Layer
from ...core.ops import rope_frequencies, rope_tables
from ...spec.ops import Array
from .. import thread
from ..cache import empty_caches
from ..weights import ModelWeights, embed

Ids = Any  # a list or an array of integers
Progress = Callable[[float], object]
CHUNK = 512  # of a prompt: enough for a weight that is read once to be multiplied at full speed
SHORT = 1 << 26  # products, about a millisecond: less than this is done at once, by the thread that asks for it


class Sequence:
    """One sequence's cache: `length` is the positions that it holds. A smaller one rolls back, and what follows is the
    same to the bit as if the positions beyond had never been."""

    def __init__(self, layers: list[Layer], done: Callable[[list[Layer]], object]) -> None:
        self.layers, self.length = layers, 0
        weakref.finalize(self, done, layers)


class CoreBackend:
    """Weights, and caches for as many sequences as are held at a time.

    context  positions that a cache can hold
    kv       "fp32" or "int8"
    chunk    tokens that a step takes best at a time, at most
    """

    chunk = CHUNK

    def __init__(
        self,
        config: Config,
        weights: ModelWeights,
        context: int,
        kv: str = "fp32",
        isa: str | None = None,
        threads: int = 1,
    ) -> None:
        self.config, self.weights, self.context, self.kv = config, weights, context, kv
        self.form = weights.form
        self.isa, self.threads = core.chosen_isa(isa), threads
        self._inv_freq = rope_frequencies(config.rope, config.E)
        matrices = [packed for layer in weights.layers for packed in layer] + [weights.head]
        self._products = sum(N * K for N, K in (packed.shape for packed in matrices))  # for a token
        self._unused: list[list[Layer]] = []  # caches of sequences that are gone
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"core, weights {self.form}, KV cache {self.kv}, {self.isa}, {self.threads} threads"

    def sequence(self) -> Sequence:
        """An empty one."""
        with self._lock:
            layers = self._unused.pop() if self._unused else None
        return Sequence(layers or self._new_layers(), self._unused.append)

    def _new_layers(self) -> list[Layer]:
        config = self.config
        keys = slice(config.H * config.E, (config.H + config.K) * config.E)
        biases = [layer.qkv_bias[keys] for layer in self.weights.layers]
        caches = empty_caches(config, self.kv, self.context, biases)
        return [
            Layer(layer, cache, config.H, config.rms_norm_eps, config.window(i))
            for i, (layer, cache) in enumerate(zip(self.weights.layers, caches, strict=True))
        ]

    def step(self, ids: Ids, cache: Sequence | None, progress: Progress | None = None) -> tuple[Array, Sequence]:
        """ids [T] -> logits of the last position [V], and the sequence that holds them.

        `progress` hears of tokens, or parts of them, since its last call. What is interrupted leaves the sequence as
        it was.
        """
        sequence = cache or self.sequence()
        return self.run(ids, sequence, slice(-1, None), progress)[0], sequence

    def logits(self, ids: Ids) -> Array:
        """ids [T] -> logits [T, V]"""
        if len(ids) > self.context:
            raise ValueError(f"{len(ids)} token_ids do not fit in a context of {self.context}")
        sequence = self.sequence()
        return np.concatenate(
            [self.run(ids[i : i + CHUNK], sequence, slice(None)) for i in range(0, max(1, len(ids)), CHUNK)]
        )

    def run(self, ids: Ids, sequence: Sequence, rows: slice, progress: Progress | None = None) -> Array:
        """ids [T] after what the sequence holds, which then holds them -> logits [rows of T, V]"""
        ids = np.asarray(ids)
        if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"token_ids must be a non-empty list of integers, got {ids.dtype} of shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.config.V:
            raise ValueError(f"token_ids must be in [0, {self.config.V}), got {ids.min()} to {ids.max()}")
        position = sequence.length

        def compute(stop: core.Stop | None, threads: int) -> Array:
            x = np.ascontiguousarray(embed(ids, self.weights.embedding))
            positions = np.arange(position, position + len(ids))
            cos, sin = rope_tables(self._inv_freq, self.config.rope.attention_scaling, positions)
            for layer in sequence.layers:  # after the last one, some rows are no longer asked for
                first = rows.indices(len(ids))[0] if layer is sequence.layers[-1] else 0
                layer.step(x, cos, sin, position, self.isa, threads, stop, first)
                if progress is not None:
                    progress(len(ids) / len(sequence.layers))
            norm, eps = self.weights.norm, self.config.rms_norm_eps
            return core.matmul(x[rows], self.weights.head, norm=norm, eps=eps, isa=self.isa, threads=threads, stop=stop)

        if self._products * len(ids) < SHORT:
            logits = compute(None, 1)
        else:
            logits = thread.call(lambda stop: compute(stop, self.threads))
        sequence.length = position + len(ids)
        return logits
