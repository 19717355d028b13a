"""The small operations of a block, and of choosing a token: the names of `spec.ops`, the bits of `numerics.fixed`.

Results are the same for any `isa` and number of `threads`, which share the rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import Rope
from ._ffi import Array, CoreError, at, check, expect, library, shape_of
from .dtypes import integers, single
from .isa import isa_number
from .threads import checked_threads


def exp(x: Array, isa: str | None = None) -> Array:
    """x [n] -> [n]: `numerics.fixed.exp`, to the bit."""
    (n,) = shape_of("x", x, 1)
    x, y = single("x", x), np.empty(n, np.float32)
    check(library().qwq_exp(at(y), at(x), n, isa_number(isa)))
    return y


def rmsnorm(x: Array, w: Array, eps: float, isa: str | None = None, threads: int = 1) -> Array:
    """x [T, D], w [D] -> [T, D]: `numerics.fixed.rmsnorm`, to the bit."""
    T, D = shape_of("x", x, 2)
    expect("w", w, (D,))
    x, w, y = single("x", x), single("w", w), np.empty((T, D), np.float32)
    check(library().qwq_rmsnorm(at(y), at(x), at(w), eps, T, D, isa_number(isa), checked_threads(threads)))
    return y


def rope_frequencies(rope: Rope, E: int) -> Array:
    """-> [E/2]: `spec.ops.rope_frequencies`, without the system's powers and logarithms."""
    if E < 2 or E % 2 or E > 1 << 20:
        raise CoreError(None, "E", f"must be even and 2 to {1 << 20}, got {E}")
    inv_freq = np.empty(E // 2, np.float32)
    yarn = (rope.factor, rope.original_max_position_embeddings, rope.beta_fast, rope.beta_slow, rope.truncate)
    check(library().qwq_rope_frequencies(at(inv_freq), rope.theta, rope.type == "yarn", *yarn, E))
    return inv_freq


def rope_tables(inv_freq: Array, scaling: float, positions: Array) -> tuple[Array, Array]:
    """inv_freq [E/2], positions [T] -> cos [T, E/2], sin [T, E/2]: `numerics.fixed.rope_tables`, to the bit."""
    (half,), (T,) = shape_of("inv_freq", inv_freq, 1), shape_of("positions", positions, 1)
    positions = np.asarray(positions)
    if T and not (positions.min() >= 0 and positions.max() <= 1 << 26):
        raise CoreError(None, "positions", f"must be 0 to {1 << 26}, got {positions.min()} to {positions.max()}")
    inv_freq, given = single("inv_freq", inv_freq), integers("positions", positions, np.int32)
    if half and not (inv_freq.min() >= 0 and inv_freq.max() <= 1):
        raise CoreError(None, "inv_freq", "must be 0 to 1")
    cos, sin = np.empty((T, half), np.float32), np.empty((T, half), np.float32)
    check(library().qwq_rope_tables(at(cos), at(sin), at(inv_freq), scaling, at(given), T, 2 * half))
    return cos, sin


def rope(x: Array, cos: Array, sin: Array, isa: str | None = None, threads: int = 1) -> Array:
    """x [T, N, E], cos [T, E/2], sin [T, E/2] -> [T, N, E]: `spec.ops.rope`, to the bit, in place; x is returned.

    Heads are contiguous; tokens may be further apart, as in a matrix that holds queries, keys and values.
    """
    T, N, E = shape_of("x", x, 3)
    expect("cos", cos, (T, E // 2))
    expect("sin", sin, (T, E // 2))
    if x.dtype != np.float32 or not x.flags.writeable:
        raise CoreError(None, "x", f"is turned in place: it must be writeable float32, not {x.dtype}")
    ld = _rows_apart("x", x, N * E)
    cos, sin = single("cos", cos), single("sin", sin)
    check(library().qwq_rope(at(x), at(cos), at(sin), T, N, E, ld, isa_number(isa), checked_threads(threads)))
    return x


def softmax(x: Array, isa: str | None = None, threads: int = 1) -> Array:
    """x [T, n] -> [T, n]: `numerics.fixed.softmax`, to the bit."""
    T, n = shape_of("x", x, 2)
    x, y = single("x", x), np.empty((T, n), np.float32)
    check(library().qwq_softmax(at(y), at(x), T, n, isa_number(isa), checked_threads(threads)))
    return y


def swiglu(gate: Array, up: Array, beta: float = 1.0, isa: str | None = None, threads: int = 1) -> Array:
    """gate [T, F], up [T, F] -> [T, F]: `numerics.fixed.swiglu`, to the bit. Both may be halves of one [T, 2 F]."""
    T, F = shape_of("gate", gate, 2)
    expect("up", up, (T, F))
    if gate.dtype != np.float32 or up.dtype != np.float32 or gate.strides != up.strides or gate.strides[1] != 4:
        gate, up = single("gate", gate), single("up", up)
    ld = _rows_apart("gate", gate, F)
    y = np.empty((T, F), np.float32)
    check(library().qwq_swiglu(at(y), at(gate), at(up), beta, T, F, ld, isa_number(isa), checked_threads(threads)))
    return y


def argmax(x: Array, isa: str | None = None) -> int:
    """x [n] -> the index of the largest, the first of equals; of the first NaN, if there is one: `np.argmax`."""
    (n,) = shape_of("x", x, 1)
    x, index = single("x", x), np.empty(1, np.int32)
    check(library().qwq_argmax(at(index), at(x), n, isa_number(isa)))
    return int(index[0])


def top_k(x: Array, k: int, isa: str | None = None) -> tuple[Array, Array]:
    """x [n] -> index [k], value [k]: `numerics.fixed.top_k`."""
    (n,) = shape_of("x", x, 1)
    if not 1 <= k <= n:
        raise CoreError(None, "k", f"must be 1 to {n}, got {k}")
    x, index, value = single("x", x), np.empty(k, np.int32), np.empty(k, np.float32)
    check(library().qwq_top_k(at(index), at(value), at(x), n, k, isa_number(isa)))
    return index, value


def uniform(seed: int, i: int) -> float:
    """A number in [0, 1) for token i of this seed: `numerics.fixed.uniform`."""
    for name, number in (("seed", seed), ("i", i)):
        if not 0 <= number < 1 << 64:
            raise CoreError(None, name, f"must be 0 to 2^64 - 1, got {number}")
    return float(library().qwq_uniform(seed, i))


def _rows_apart(name: str, x: Array, columns: int) -> int:
    """The elements from one row to the next; all that is in a row must be contiguous."""
    if len(x) == 0 or columns == 0:
        return columns
    apart: Any = x.strides[0] if len(x) > 1 else columns * x.itemsize
    if not x[:1].flags.c_contiguous or apart % x.itemsize or apart < columns * x.itemsize:
        raise CoreError(None, name, f"has strides {x.strides}: rows must be contiguous, and follow each other")
    return int(apart // x.itemsize)
