"""What the engine keeps of the positions so far: one buffer for each layer, and how many positions it holds."""

from __future__ import annotations

import numpy as np

from ..config import Config
from ..core.attention import KV, empty_kv, kv_bytes
from ..core.ops import rope_frequencies, rope_tables
from ..numerics.engine import CENTER_POSITIONS
from ..numerics.kv import key_center
from ..spec.ops import Array


def empty_caches(config: Config, form: str, capacity: int, biases: list[Array]) -> list[KV]:
    """A cache for each layer; int8 ones know what k_proj's bias [K * E] adds to every key."""
    centers = key_centers(config, biases) if form == "int8" else [None] * config.L
    return [empty_kv(form, capacity, config.K, config.E, center) for center in centers]


def cache_bytes(config: Config, form: str, capacity: int) -> int:
    """Of all layers."""
    return config.L * kv_bytes(form, capacity, config.K, config.E)


def key_centers(config: Config, biases: list[Array]) -> list[Array]:
    """k_proj biases [K * E] -> [K, E]: the mean of the bias over the positions, as RoPE turns it.

    Softmax does not see a vector that is taken off all keys, so it may be any; this one leaves small numbers to int8.
    It depends on weights alone: so a token's cache is the same in every context.
    """
    positions = np.arange(min(config.positions, CENTER_POSITIONS))
    inv_freq = rope_frequencies(config.rope, config.E)
    cos, sin = rope_tables(inv_freq, config.rope.attention_scaling, positions)
    return [key_center(bias.reshape(config.K, config.E), cos, sin) for bias in biases]
