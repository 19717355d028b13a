"""The KV caches of a sequence on the core: one buffer for each layer, and their size."""

from __future__ import annotations

import numpy as np

from ..config import Config
from ..core.attention import KV, empty_kv
from ..core.ops import rope_frequencies, rope_tables
from ..numerics.engine import CENTER_POSITIONS
from ..numerics.kv import key_center
from ..spec.ops import Array

# The core works on so many positions and dimensions at a time, and its buffers hold whole multiples of them.
_POSITIONS, _DIMENSIONS = 128, 32


def empty_caches(config: Config, form: str, capacity: int, biases: list[Array]) -> list[KV]:
    """Return a cache for each layer. `biases`: those of each k_proj [K * E], to subtract from int8 keys."""
    centers = key_centers(config, biases) if form == "int8" else [None] * config.L
    return [empty_kv(form, capacity, config.K, config.E, center) for center in centers]


def cache_bytes(config: Config, form: str, capacity: int) -> int:
    """Return the bytes of all layers' caches for so many positions, by arithmetic: no compiled core is needed."""
    positions = -(-capacity // _POSITIONS) * _POSITIONS
    wide = -(-config.E // _DIMENSIONS) * _DIMENSIONS
    vector = {"fp32": 4 * wide, "int8": wide + 4}[form]  # int8 has a float32 scale beside it
    return 2 * config.L * config.K * positions * vector


def key_centers(config: Config, biases: list[Array]) -> list[Array]:
    """k_proj biases [K * E] -> [K, E]: the mean of the bias over the positions, as RoPE rotates it.

    Softmax ignores a vector that is subtracted from all keys. This one leaves small numbers to int8. It depends on
    weights alone, so a token's cache is the same in every context.
    """
    positions = np.arange(min(config.positions, CENTER_POSITIONS))
    inv_freq = rope_frequencies(config.rope, config.E)
    cos, sin = rope_tables(inv_freq, config.rope.attention_scaling, positions)
    return [key_center(bias.reshape(config.K, config.E), cos, sin) for bias in biases]
