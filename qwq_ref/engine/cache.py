"""The KV caches of a sequence on the core: one buffer for each layer, and their size."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Config
from ..core.attention import KV, KeyBias, empty_kv

# The core works on so many positions and dimensions at a time, and its buffers hold whole multiples of them.
_POSITIONS, _DIMENSIONS = 128, 32


def empty_caches(config: Config, form: str, capacity: int, biases: Sequence[KeyBias | None]) -> list[KV]:
    """Return a cache for each layer. `biases`: what its int8 keys leave out of their bias."""
    return [empty_kv(form, capacity, config.K, config.E, bias) for bias in biases]


def cache_bytes(config: Config, form: str, capacity: int) -> int:
    """Return the bytes of all layers' caches for so many positions, by arithmetic: no compiled core is needed."""
    positions = -(-capacity // _POSITIONS) * _POSITIONS
    wide = -(-config.E // _DIMENSIONS) * _DIMENSIONS
    pair = {"fp32": 8 * wide, "int8": 2 * wide + 12}[form]  # int8 has float32 scales: two of a key, one of a value
    return config.L * config.K * positions * pair
