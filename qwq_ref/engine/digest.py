"""A digest that tells one model from another. It reads a sample of each array, so that it costs milliseconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np

from ..config import Config
from ..spec.ops import Array

_PIECES, _BYTES = 64, 256  # of each array: even small changes of all weights, such as a merged adapter, meet some


def digest(config: Config, arrays: Iterable[Array]) -> str:
    """Return a SHA-256 of the config, and of the shapes and a sample of arrays."""
    found = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for array in arrays:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        found.update(f"{array.dtype}{array.shape}".encode())
        step = max(_BYTES, len(flat) // _PIECES)
        for begin in range(0, len(flat), step):
            found.update(flat[begin : begin + _BYTES].data)
    return found.hexdigest()
