"""Products of activations and packed weights."""

from __future__ import annotations

import numpy as np

from ._ffi import Array, CoreError, Stop, at, check, expect, ffi, flag, library, shape_of
from .dtypes import single
from .formats import GROUP
from .isa import isa_number
from .memory import scratch
from .threads import checked_threads
from .weights import Packed, linear


def quantise_activations(x: Array, isa: str | None = None) -> tuple[Array, Array, Array]:
    """x [T, n] -> q int8 [T, n], step uint8 [T, n / 64], scale [T, 1]

    `numerics.quant.quantise_activations`, to the bit; a step is the index of a ratio in `numerics.quant.RATIOS`.
    """
    T, K = shape_of("x", x, 2)
    x = single("x", x)
    q, step, scale = np.empty((T, K), np.int8), np.empty((T, K // GROUP), np.uint8), np.empty((T, 1), np.float32)
    check(library().qwq_quantise_activations(at(q), at(step), at(scale), at(x), T, K, isa_number(isa)))
    return q, step, scale


def matmul(
    x: Array,
    w: Packed,
    *,
    norm: Array | None = None,
    eps: float = 0.0,
    bias: Array | None = None,
    residual: Array | None = None,
    swiglu: bool = False,
    out: Array | None = None,
    isa: str | None = None,
    threads: int = 1,
    stop: Stop | None = None,
) -> Array:
    """x [T, k], packed w [n, k], bias [n], residual [T, n] -> [T, n]

    These steps in this order; all but the product are optional:
        x = `numerics.fixed.rmsnorm`(x, norm, eps)
        x = x[:, w.columns], if w has an order of columns
        y = x w^T: `numerics.quant.matmul_integers` or `matmul_floats`
        y = y + bias
        y = residual + y
        y = `numerics.fixed.swiglu`(gate, up), for a w of `interleave`: [T, n / 2]
    The result is the same to the bit for any isa and threads. It goes into `out` where it is given; `out` may be
    `residual`. Raises Stopped where `stop` was set.
    """
    T, K = shape_of("x", x, 2)
    N, columns = w.shape
    if columns != K:
        raise CoreError(None, "x", f"has {K} columns, and the weight {columns}")
    x = single("x", x)
    library()
    fusion = ffi.new("qwq_fusion *")
    held = []  # the arrays that C gets pointers to
    for name, value, shape in (("norm", norm, (K,)), ("bias", bias, (N,)), ("residual", residual, (T, N))):
        if value is not None:
            expect(name, value, shape)
            held.append(single(name, value))
            setattr(fusion, name, at(held[-1]))
    fusion.eps, fusion.swiglu, fusion.stop = eps, swiglu, flag(stop)
    shape = (T, N // 2 if swiglu else N)
    y = np.empty(shape, np.float32) if out is None else out
    if y.shape != shape or y.dtype != np.float32 or not y.flags.c_contiguous:
        raise CoreError(None, "out", f"must be float32 {list(shape)}, and contiguous")
    weight = linear(w)
    room = scratch(library().qwq_matmul_scratch(ffi.addressof(weight, "format"), T, K, checked_threads(threads)))
    sizes = (T, N, K, isa_number(isa), threads)
    check(library().qwq_matmul(at(y), weight, at(x), fusion, at(room), *sizes))
    return y
