"""One decoder layer in one call. `spec.model.block` says what it computes; the pieces are those of this package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._ffi import Array, CoreError, Stop, at, check, ffi, flag, library
from .attention import KV
from .formats import c_format
from .isa import isa_number
from .memory import scratch
from .threads import checked_threads
from .weights import Packed


@dataclass(frozen=True)
class LayerWeights:
    """What a layer is made of.

    qkv       packed [(H + 2 K) E, D]: the rows of q_proj, k_proj and v_proj after one another; qkv_bias alike
    gate_up   packed [2 F', D]: `core.interleave` of gate_proj and up_proj, F' a multiple of 32
    down      packed [D, F']
    """

    input_norm: Array
    qkv: Packed
    qkv_bias: Array
    o: Packed
    post_norm: Array
    gate_up: Packed
    down: Packed

    def __iter__(self) -> Any:
        return iter((self.qkv, self.o, self.gate_up, self.down))


class Layer:
    """A layer's weights and its cache, as C sees them. Raises CoreError for shapes that do not belong together."""

    def __init__(self, weights: LayerWeights, kv: KV, H: int, eps: float, window: int | None = None) -> None:
        D, F = weights.down.shape
        q, k = H * kv.E, kv.K * kv.E
        shapes = ((q + 2 * k, D), (D, q), (2 * F, D), (D, F))
        for name, packed, shape in zip(("qkv", "o", "gate_up", "down"), weights, shapes, strict=True):
            if packed.shape != shape:
                raise CoreError(None, name, f"must have shape {list(shape)}, got {list(packed.shape)}")
        for name, array, size in (
            ("input_norm", weights.input_norm, D),
            ("post_norm", weights.post_norm, D),
            ("qkv_bias", weights.qkv_bias, q + 2 * k),
        ):
            if array.shape != (size,) or array.dtype.str[1:] != "f4":
                raise CoreError(None, name, f"must be float32 [{size}], got {array.dtype} {list(array.shape)}")
        self.D, self.kv, self._held = D, kv, weights
        self._layer = ffi.new("qwq_layer *")
        for name, value in {"D": D, "F": F, "H": H, "K": kv.K, "E": kv.E, "window": window or 0}.items():
            setattr(self._layer, name, value)
        self._layer.capacity, self._layer.eps, self._layer.kv_int8 = kv.capacity, eps, kv.form == "int8"
        for name, packed in zip(("qkv", "o", "gate_up", "down"), weights, strict=True):
            linear = getattr(self._layer, name)
            linear.format, linear.w = c_format(packed.format)[0], at(packed.packed)
        for name in ("input_norm", "post_norm", "qkv_bias"):
            setattr(self._layer, name, at(getattr(weights, name)))
        self._layer.center, self._layer.kv = at(kv.center), at(kv.buffer)

    def step(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        pos: int,
        isa: str,
        threads: int,
        stop: Stop | None = None,
        first: int = 0,
    ) -> None:
        """x [T, D] at positions pos to pos + T - 1, in place; cos, sin [T, E/2]. All float32 and contiguous.

        Of rows below `first` only keys and values are computed, and x stays as it is. Raises Stopped where `stop` was
        set; x, and the cache from pos on, then hold anything.
        """
        T = len(x)
        if pos < 0 or pos + T > self.kv.capacity:
            raise CoreError(None, "pos", f"{pos} to {pos + T - 1} do not fit in a cache of {self.kv.capacity}")
        if not 0 <= first <= T:
            raise CoreError(None, "first", f"must be 0 to {T}, got {first}")
        for name, array, shape in (("x", x, (T, self.D)), ("cos", cos, (T, self.kv.E // 2)), ("sin", sin, cos.shape)):
            if array.shape != shape or array.dtype.str[1:] != "f4" or not array.flags.c_contiguous:
                raise CoreError(None, name, f"must be contiguous float32 {list(shape)}, got {list(array.shape)}")
        room = scratch(library().qwq_layer_scratch(self._layer, pos, T, checked_threads(threads)))
        check(
            library().qwq_layer_step(
                at(x),
                self._layer,
                at(cos),
                at(sin),
                at(room),
                flag(stop),
                pos,
                T,
                first,
                isa_number(isa),
                threads,
            )
        )
