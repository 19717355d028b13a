"""Random weights in packed form: of one matrix, and of a whole model.

The time of a product does not depend on the values of the weights. So the codes are random, 256 rows are packed, and
all other rows repeat them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import core
from ..config import Config
from ..core import Array, Format, Packed
from ..core.formats import CODES
from ..engine.plan import plan
from ..engine.weights import ModelWeights
from ..formats.packed import Stored
from ..numerics.quant import CODEBOOK

ROWS = 256  # different rows of a weight; the others repeat them, which changes no instruction


def random_array(seed: int, shape: tuple[int, ...]) -> Array:
    """Return float32 numbers of a normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def weight(form: Format, shape: tuple[int, ...], size: float = 0.3) -> Packed:
    """Return a packed weight of random codes. `size` is the root mean square of its numbers, nearly.

    The formats with zero points or offsets have another size.
    """
    N, K = shape
    rows = min(N, ROWS)
    part = _pack_random(form, rows, K, size)
    panels, panels_of_part = -(-N // 32), -(-rows // 32)
    bytes_of_panel = len(part.packed) // panels_of_part
    packed = core.aligned(panels * bytes_of_panel)
    for start in range(0, len(packed), len(part.packed)):
        span = packed[start : start + len(part.packed)]
        span[:] = part.packed[: len(span)]
    return Packed(form, packed, (N, K))


def _level_size(codes: str) -> float:
    """Return the root mean square of the levels of uniform codes."""
    if codes == "q4":
        return float(np.sqrt(np.mean(CODEBOOK.astype(float) ** 2)))
    return math.sqrt((4 ** CODES[codes].bits - 1) / 12)


def _pack_random(form: Format, n: int, k: int, size: float) -> Packed:
    """Return an [n, k] weight whose rows are all random."""
    rng = np.random.default_rng(0)
    if not form.group:
        w = random_array(0, (n, k)) * np.float32(size)
        if form.codes == "bf16":
            return core.pack(form, (w.view(np.uint32) >> 16).astype(np.uint16))
        return core.pack(form, w.astype(CODES[form.codes].dtype))
    if form.codes == "q8":
        code: Array = rng.integers(-128, 128, (n, k), np.int8)
    else:
        code = rng.integers(0, 1 << CODES[form.codes].bits, (n, k), np.uint8)
    m, blocks = -(-k // form.group), -(-k // 256)
    super_ = form.scales.startswith("super")
    levels = _level_size(form.codes)
    parts: dict[str, Any] = {"scale": np.full((n, blocks if super_ else m), size / levels, np.float16)}
    if form.scales == "zero":
        parts["zero_point"] = rng.integers(0, 16, (n, m), np.uint8)
    if super_:
        parts["sub_scale"] = rng.integers(1, 64, (n, m), np.uint8)
    if form.scales == "super_min":
        parts["offset"] = parts["scale"]
        parts["sub_min"] = rng.integers(0, 64, (n, m), np.uint8)
    return core.pack(form, code, **parts)


def random_weights(config: Config, form: str, progress: Callable[[int], object] = lambda count: None) -> ModelWeights:
    """Return all of `random_tensors`; `progress` is called with the bytes of each."""
    tensors = {}
    for name, tensor in random_tensors(config, form):
        tensors[name] = tensor
        progress(Stored.of(tensor).nbytes)
    return ModelWeights.of(config, form, tensors)


def random_tensors(config: Config, form: str) -> Iterator[tuple[str, Packed | Array]]:
    """Yield the tensors of `plan`. Outputs are about as large as inputs, as in a trained model."""
    for name, stored in plan(config, form).items():
        if stored.format is not None:
            yield name, weight(stored.format, (stored.shape[0], stored.shape[1]), stored.shape[1] ** -0.5)
        elif len(stored.shape) == 2:
            yield name, _random_rows(stored)
        else:
            yield name, np.full(stored.shape, name.endswith("norm.weight"), np.float32)


def _random_rows(stored: Stored) -> Array:
    """Return an embedding: a few random rows, repeated."""
    bits = stored.dtype == "BF16"
    array: Array = core.aligned(stored.nbytes).view(np.uint16 if bits else np.float32).reshape(stored.shape)
    some = np.random.default_rng(1).standard_normal((256, stored.shape[1]), np.float32)
    rows = (some.view(np.uint32) >> 16).astype(np.uint16) if bits else some
    for start in range(0, len(array), len(rows)):
        array[start : start + len(rows)] = rows[: len(array) - start]
    return array
