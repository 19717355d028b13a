"""The size of the KV cache of a sequence on the core, by arithmetic: no compiled core is needed."""

from __future__ import annotations

from ..config import Config

# The core works on so many positions and dimensions at a time, and its pages hold whole multiples of them.
_POSITIONS, _DIMENSIONS = 128, 32


def cache_bytes(config: Config, form: str, capacity: int) -> int:
    """Return the bytes of all layers' caches for so many positions."""
    positions = -(-capacity // _POSITIONS) * _POSITIONS
    wide = -(-config.E // _DIMENSIONS) * _DIMENSIONS
    pair = {"fp32": 8 * wide, "int8": 2 * wide + 12}[form]  # int8 has float32 scales: two of a key, one of a value
    return config.L * config.K * positions * pair
