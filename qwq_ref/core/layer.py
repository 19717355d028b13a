"""One decoder layer in one call. `spec.model.block` says what it computes; the pieces are those of this package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ._ffi import Array, CoreError, Stop, at, check, ffi, flag, library
from .attention import KV, PAGE, c_kv
from .isa import ISAS
from .memory import scratch
from .threads import checked_threads
from .weights import Packed, fill_linear


@dataclass(frozen=True)
class QKV:
    """Three projections that are packed apart, each in its own format.

    q  packed [H E, D]
    k  packed [K E, D]
    v  packed [K E, D]
    """

    q: Packed
    k: Packed
    v: Packed


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer.

    qkv       packed [(H + 2 K) E, D]: the rows of q_proj, k_proj and v_proj after one another; or three weights apart
    qkv_bias  [(H + 2 K) E], in that order in both cases
    gate_up   packed [2 F', D]: `core.interleave` of gate_proj and up_proj, F' a multiple of 32
    down      packed [D, F']
    """

    input_norm: Array
    qkv: Packed | QKV
    qkv_bias: Array
    o: Packed
    post_norm: Array
    gate_up: Packed
    down: Packed

    def __iter__(self) -> Iterator[Packed]:
        """The packed weights."""
        apart = (self.qkv.q, self.qkv.k, self.qkv.v) if isinstance(self.qkv, QKV) else (self.qkv,)
        return iter((*apart, self.o, self.gate_up, self.down))


@dataclass(frozen=True)
class Part:
    """Tokens of one sequence in a step.

    pages     uint64 [capacity / 128, rounded up]: the pages of its cache, see `attention.KV`; all layers share them
    capacity  tokens that the cache has room for
    pos       the position of the first token
    T         tokens
    first     of the tokens before this one, only keys and values are wanted
    """

    pages: Array
    capacity: int
    pos: int
    T: int
    first: int = 0


class Parts:
    """The parts of a step, as C sees them: one after another in the rows of the residual stream."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Raises CoreError for tokens that do not fit in their cache."""
        self.T, self.wanted = sum(part.T for part in parts), sum(part.T - part.first for part in parts)
        self.parts = parts
        self.list = ffi.new("qwq_part[]", len(parts))
        for part, place in zip(parts, self.list, strict=True):
            if part.pos < 0 or part.pos + part.T > min(part.capacity, len(part.pages) * PAGE):
                last = part.pos + part.T - 1
                raise CoreError(None, "pos", f"{part.pos} to {last} do not fit in a cache of {part.capacity}")
            if not 0 <= part.first <= part.T:
                raise CoreError(None, "first", f"must be 0 to {part.T}, got {part.first}")
            place.pages = ffi.cast("uint8_t *const *", part.pages.ctypes.data)
            place.capacity, place.pos, place.T, place.first = part.capacity, part.pos, part.T, part.first

    def __len__(self) -> int:
        return len(self.parts)


class Layer:
    """A layer's weights, and the shape of its caches, as C sees them.

    Raises CoreError for shapes that do not belong together.
    """

    def __init__(self, weights: LayerWeights, kv: KV, H: int, eps: float, window: int | None = None) -> None:
        """kv: any cache of the layer. Its pages and its capacity do not count: each part of a step has its own."""
        D, F = weights.down.shape
        q, k = H * kv.E, kv.K * kv.E
        library()
        self.D, self.kv, self._held = D, kv, weights
        self._layer = ffi.new("qwq_layer *")
        self._layer.D, self._layer.F, self._layer.H, self._layer.window = D, F, H, window or 0
        self._layer.eps = eps
        qkv, places = weights.qkv, self._layer.qkv
        if isinstance(qkv, QKV):
            projections = [("q", qkv.q, places.q, q), ("k", qkv.k, places.k, k), ("v", qkv.v, places.v, k)]
        else:
            projections = [("qkv", qkv, places.fused, q + 2 * k)]
        rest = [
            ("o", weights.o, self._layer.o, (D, q)),
            ("gate_up", weights.gate_up, self._layer.gate_up, (2 * F, D)),
            ("down", weights.down, self._layer.down, (D, F)),
        ]
        for name, packed, place, shape in [(n, w, at_, (rows, D)) for n, w, at_, rows in projections] + rest:
            if packed.shape != shape:
                raise CoreError(None, name, f"must have shape {list(shape)}, got {list(packed.shape)}")
            fill_linear(place, packed)
        for name, size in (("input_norm", D), ("post_norm", D), ("qkv_bias", q + 2 * k)):
            array: Array = getattr(weights, name)
            if array.shape != (size,) or array.dtype != np.float32:
                raise CoreError(None, name, f"must be float32 [{size}], got {array.dtype} {list(array.shape)}")
            setattr(self._layer, name, at(array))
        if kv.bias is not None:
            self._bias = weights.qkv_bias.copy()
            self._bias[q : q + k] = kv.bias.rest.ravel()
            self._layer.qkv_bias = at(self._bias)
        self._layer.kv = c_kv(kv)[0]

    def step(
        self, x: Array, parts: Parts, cos: Array, sin: Array, isa: str, threads: int, stop: Stop | None = None
    ) -> None:
        """x [T, D], the tokens of the parts, in place; cos, sin [T, E/2]. All float32 and contiguous.

        The rows that are wanted come to lie at the beginning of x. Raises Stopped where `stop` was set; x, and the
        caches from `pos` on, then hold anything. Raises OutOfRange for queries, keys or values that are not finite, or
        beyond 2^56; x and the caches then stay as they are.
        """
        T = parts.T
        for name, array, shape in (("x", x, (T, self.D)), ("cos", cos, (T, self.kv.E // 2)), ("sin", sin, cos.shape)):
            if array.shape != shape or array.dtype != np.float32 or not array.flags.c_contiguous:
                raise CoreError(None, name, f"must be contiguous float32 {list(shape)}, got {list(array.shape)}")
        lib, listed = library(), (parts.list, len(parts))
        room = scratch(lib.qwq_layer_scratch(self._layer, *listed, checked_threads(threads)))
        how = (at(room), flag(stop), ISAS.index(isa), threads)
        check(lib.qwq_layer_step(at(x), self._layer, *listed, at(cos), at(sin), *how))
