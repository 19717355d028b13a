"""The fast path: the spec's forward pass on the C core. A cache is the number of positions that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import core
from ..config import Config
from ..core.layer import Layer
from ..core.ops import rope_frequencies, rope_tables
from ..spec.ops import Array
from .cache import empty_caches
from .weights import ModelWeights, embed


class CoreBackend:
    """Weights and one sequence's cache.

    kv       "fp32" or "int8"
    context  positions that the cache can hold

    `step` continues at the position that it is given: a smaller one than the last rolls back, and what follows is the
    same to the bit as if the positions beyond had never been.
    """

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
        self.isa, self.threads = core.chosen_isa(isa), threads
        keys = slice(config.H * config.E, (config.H + config.K) * config.E)
        caches = empty_caches(config, kv, context, [layer.qkv_bias[keys] for layer in weights.layers])
        self._layers = [
            Layer(layer, cache, config.H, config.rms_norm_eps, config.window(i))
            for i, (layer, cache) in enumerate(zip(weights.layers, caches, strict=True))
        ]
        self._inv_freq = rope_frequencies(config.rope, config.E)

    def hidden(self, ids: Sequence[int], position: int) -> Array:
        """ids [T] at `position` and after -> [T, D], what the last layer leaves; the cache then holds them."""
        ids = np.asarray(ids)
        x = np.ascontiguousarray(embed(ids, self.weights.embedding))
        positions = np.arange(position, position + len(ids))
        cos, sin = rope_tables(self._inv_freq, self.config.rope.attention_scaling, positions)
        for layer in self._layers:
            layer.step(x, cos, sin, position, self.isa, self.threads)
        return x

    def head(self, x: Array) -> Array:
        """x [T, D] -> logits [T, V]"""
        return core.matmul(
            x,
            self.weights.head,
            norm=self.weights.norm,
            eps=self.config.rms_norm_eps,
            isa=self.isa,
            threads=self.threads,
        )

    def step(self, ids: Sequence[int], cache: Any) -> tuple[Array, int]:
        """ids [T] -> logits of the last position [V], and the positions that the cache then holds"""
        position = cache or 0
        x = self.hidden(ids, position)
        return self.head(x[-1:])[0], position + len(x)

    def logits(self, ids: Sequence[int], position: int = 0) -> Array:
        """ids [T] -> logits [T, V]"""
        return self.head(self.hidden(ids, position))
