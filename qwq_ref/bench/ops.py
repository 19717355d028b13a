"""The operations that can be measured: their arguments, their work and their limits.

Shapes are QwQ-32B's. Weights are random, see `weights`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import core
from ..config import Config
from ..core import Array, Format, Packed, attention
from ..core import ops as small
from ..core.memory import aligned
from ..host.memory import available_bytes, require
from .weights import ROWS, random_array, weight

MANY = 64  # most copies. If all of them fit a cache, the row says so
Shape = tuple[int, ...]
Call = Callable[[int, str, int], object]  # copy, isa, threads


@dataclass(frozen=True)
class Work:
    """The work of one call.

    operations  number of operations, in the operation's unit
    bytes       bytes read and written, each array once
    held        bytes of the data that calls take from different copies
    """

    operations: int
    bytes: int
    held: int


@dataclass(frozen=True)
class Op:
    """An operation of the core.

    says      a description in a few words
    unit      the unit of its work: MAC, weight, element
    letters   the letters of a shape, such as NxK
    shapes    QwQ-32B's shapes by name
    prepare   (shape, copies) -> the data of each copy; with enough copies, it comes from memory in each call
    bind      (data, shape, T) -> a call
    work      (shape, T) -> Work
    peak      a name of core.ceilings.PEAKS that limits the operation, or None
    tokens    whether the operation has a T
    threaded  whether threads can share it
    """

    name: str
    says: str
    unit: str
    letters: str
    shapes: dict[str, Shape]
    prepare: Callable[[Shape, int], Sequence[Any]]
    bind: Callable[[Sequence[Any], Shape, int], Call]
    work: Callable[[Shape, int], Work]
    peak: str | None = None
    tokens: bool = True
    threaded: bool = True


def copies_for(held: int, rotation: int, what: str) -> int:
    """Return the number of copies that take `rotation` bytes, which no cache holds, in half of the free memory."""
    if not held:
        return 1
    free = available_bytes()
    require({"data": held}, what, free)
    return max(1, min(-(-rotation // held), MANY, free // 2 // held))


@functools.cache
def registry() -> dict[str, Op]:
    """Return all operations by name."""
    c = Config.from_file(Path(__file__).parents[1] / "models" / "qwq-32b" / "config.json")
    layers: dict[str, Shape] = {
        "qkv": ((c.H + 2 * c.K) * c.E, c.D),
        "o": (c.D, c.H * c.E),
        "gate_up": (2 * c.F, c.D),
        "down": (c.D, c.F),
    }
    ops = [_matmul(*row, layers) for row in _FORMATS]
    ops += [_quantise(form, layers) for form in ("q4", "q8")]
    ops += [
        _rows("quantise-activations", "int8 and scales from float32", {"hidden": (c.D,), "mlp": (c.F,)}, _activations),
        *(_attention(form, c) for form in ("int8", "fp32")),
        _rows("rmsnorm", "x / sqrt(mean(x^2) + eps) * w", {"hidden": (c.D,)}, functools.partial(_rmsnorm, c)),
        _rope(c),
        _rows("softmax", "of a row", {"vocabulary": (c.V,)}, _softmax),
        _swiglu(c),
        _choice("top-k", "the 40 largest of a row", c, lambda x, isa: small.top_k(x, min(40, len(x)), isa)),
        _choice("argmax", "the largest of a row", c, small.argmax),
    ]
    return {op.name: op for op in ops}


def _copy(array: Array) -> Array:
    """Return a copy of an array of bytes, on huge pages."""
    copy = core.aligned(array.nbytes)
    copy[:] = array
    return copy


# --- Products of weights -------------------------------------------------------------------------------------------

_FORMATS = [
    ("q4", "the project's own, 4.25 bits", Format("q4"), "dots-127"),
    ("u4-128-zero", "AWQ, GPTQ", Format("u4", 128, "zero"), "dots-31"),
    ("u4-32-plain", "GGUF's Q4_0", Format("u4", 32, "plain", 8), "dots-31"),
    ("u4-32-super_min", "GGUF's Q4_K", Format("u4", 32, "super_min"), "dots-31"),
    ("u4-16-super", "GGUF's Q3_K", Format("u4", 16, "super", 4), "dots-31"),
    ("u5-32-plain", "GGUF's Q5_0", Format("u5", 32, "plain", 16), "dots-31"),
    ("u5-32-super_min", "GGUF's Q5_K", Format("u5", 32, "super_min"), "dots-31"),
    ("u6-16-super", "GGUF's Q6_K", Format("u6", 16, "super", 32), "dots-63"),
    ("u8-128-zero", "GPTQ with 8 bits", Format("u8", 128, "zero"), "dots-words"),
    ("q8-64", "the project's own, 8.25 bits", Format("q8"), "dots-words"),
    ("q8-32", "GGUF's Q8_0", Format("q8", 32), "dots-words"),
    ("bf16", "bfloat16 weights, exact", Format("bf16", 0), "floats"),
    ("fp16", "float16 weights, exact", Format("fp16", 0), "floats"),
    ("fp32", "float32 weights, exact", Format("fp32", 0), "floats"),
]


def peak_of(form: Format) -> str:
    """Return the name in `core.ceilings.PEAKS` of the peak that limits products of such weights."""
    return next(peak for _, _, known, peak in _FORMATS if known.codes == form.codes)


def _matmul(name: str, says: str, form: Format, peak: str, shapes: dict[str, Shape]) -> Op:
    def prepare(shape: Shape, copies: int) -> list[Packed]:
        first = weight(form, shape)
        return [first, *(replace(first, packed=_copy(first.packed)) for _ in range(copies - 1))]

    def bind(weights: Sequence[Packed], shape: Shape, T: int) -> Call:
        x, y = random_array(1, (T, shape[1])), np.empty((T, shape[0]), np.float32)
        return lambda copy, isa, threads: core.matmul(x, weights[copy], out=y, isa=isa, threads=threads)

    def work(shape: Shape, T: int) -> Work:
        N, K = shape
        held = core.packed_bytes(form, (N, K))
        return Work(T * N * K, held + 4 * T * (N + K), held)

    return Op(f"matmul-{name}", says, "MAC", "NxK", shapes, prepare, bind, work, peak)


def _quantise(form: str, shapes: dict[str, Shape]) -> Op:
    """Quantise from bfloat16, the type of checkpoints."""
    function = {"q4": core.quantise_q4, "q8": core.quantise_q8}[form]

    def prepare(shape: Shape, copies: int) -> list[Array]:
        N, K = shape
        part = (random_array(0, (min(N, ROWS), K)).view(np.uint32) >> 16).astype(np.uint16)
        w = core.aligned(2 * N * K).view(np.uint16).reshape(N, K)
        for start in range(0, N, ROWS):
            w[start : start + ROWS] = part[: N - start]
        return [w]

    def bind(w: Sequence[Array], shape: Shape, T: int) -> Call:
        return lambda copy, isa, threads: function(w[copy], isa, threads)

    def work(shape: Shape, T: int) -> Work:
        N, K = shape
        return Work(N * K, N * K * 3 + N * K // 64 * 2, 0)  # 2 bytes read, 1 written, and scales

    says = f"{form} weights from bfloat16"
    return Op(f"quantise-{form}", says, "weight", "NxK", shapes, prepare, bind, work, tokens=False)


# --- Attention -----------------------------------------------------------------------------------------------------


def _attention(form: str, c: Config) -> Op:
    """Attention of T new tokens, the last of a context of S."""
    bytes_of_token = c.K * (2 * c.E + 12 if form == "int8" else 8 * c.E)
    function: Callable[..., Array] = attention.attention_int8 if form == "int8" else attention.attention_fp32
    at_a_time = 1024

    def prepare(shape: Shape, copies: int) -> list[attention.KV]:
        (S,) = shape
        buffer = aligned(attention.kv_bytes(form, S, c.K, c.E))
        first = attention.KV.within(form, buffer, S, c.K, c.E)
        k, v = (random_array(seed, (min(S, at_a_time), c.K, c.E)) for seed in (2, 3))
        for pos in range(0, S, at_a_time):
            attention.append(first, k[: S - pos], v[: S - pos], pos)
        others = (_copy(buffer) for _ in range(copies - 1))
        return [first, *(attention.KV.within(form, other, S, c.K, c.E) for other in others)]

    def bind(caches: Sequence[attention.KV], shape: Shape, T: int) -> Call:
        q, pos = random_array(4, (T, c.H, c.E)), shape[0] - T
        return lambda copy, isa, threads: function(q, caches[copy], pos, isa=isa, threads=threads)

    def work(shape: Shape, T: int) -> Work:
        (S,) = shape
        seen = T * (S - T) + T * (T + 1) // 2
        held = S * bytes_of_token
        return Work(2 * seen * c.H * c.E, held + 2 * 4 * T * c.H * c.E, held)

    shapes: dict[str, Shape] = {"4k": (4096,), "32k": (32_768,)}
    peak = {"int8": "dots-words", "fp32": "floats"}[form]
    return Op(f"attention-{form}", f"T tokens at the end of a cached context, {form} KV", "MAC", "S", shapes, prepare,
              bind, work, peak)  # fmt: skip


# --- Operations on rows: their data is small and in a cache, as within a block ---------------------------------------


def _rows(name: str, says: str, shapes: dict[str, Shape], bind: Callable[[Shape, int], Call]) -> Op:
    """An operation from x [T, n] to as many numbers."""

    def work(shape: Shape, T: int) -> Work:
        written = {"quantise-activations": 1}.get(name, 4)
        return Work(T * shape[0], T * shape[0] * (4 + written), 0)

    return Op(name, says, "element", "N", shapes, _nothing, lambda _, shape, T: bind(shape, T), work,
              threaded=name != "quantise-activations")  # fmt: skip


def _nothing(shape: Shape, copies: int) -> list[None]:
    return [None]


def _activations(shape: Shape, T: int) -> Call:
    x = random_array(1, (T, *shape))
    return lambda copy, isa, threads: core.quantise_activations(x, isa)


def _rmsnorm(c: Config, shape: Shape, T: int) -> Call:
    x, w = random_array(1, (T, *shape)), random_array(2, shape)
    return lambda copy, isa, threads: small.rmsnorm(x, w, c.rms_norm_eps, isa, threads)


def _softmax(shape: Shape, T: int) -> Call:
    x = random_array(1, (T, *shape))
    return lambda copy, isa, threads: small.softmax(x, isa, threads)


def _swiglu(c: Config) -> Op:
    def bind(_: Sequence[Any], shape: Shape, T: int) -> Call:
        gate, up = random_array(1, (T, *shape)), random_array(2, (T, *shape))
        return lambda copy, isa, threads: small.swiglu(gate, up, 1.0, isa, threads)

    def work(shape: Shape, T: int) -> Work:
        return Work(T * shape[0], 12 * T * shape[0], 0)

    return Op("swiglu", "gate / (1 + e^-gate) * up", "element", "F", {"mlp": (c.F,)}, _nothing, bind, work)


def _rope(c: Config) -> Op:
    def bind(_: Sequence[Any], shape: Shape, T: int) -> Call:
        heads, E = shape
        x, (cos, sin) = (
            random_array(1, (T, heads, E)),
            small.rope_tables(small.rope_frequencies(c.rope, E), 1.0, np.arange(T, dtype=np.int32)),
        )
        return lambda copy, isa, threads: small.rope(x, cos, sin, isa, threads)

    def work(shape: Shape, T: int) -> Work:
        heads, E = shape
        return Work(T * heads * E, 8 * T * heads * E + 4 * T * E, 0)

    shapes: dict[str, Shape] = {"heads": (c.H + c.K, c.E)}
    return Op("rope", "queries and keys rotated by their position", "element", "HxE", shapes, _nothing, bind, work)


def _choice(name: str, says: str, c: Config, function: Callable[[Array, str], object]) -> Op:
    def bind(_: Sequence[Any], shape: Shape, T: int) -> Call:
        x = random_array(1, shape)
        return lambda copy, isa, threads: function(x, isa)

    def work(shape: Shape, T: int) -> Work:
        return Work(shape[0], 4 * shape[0], 0)

    return Op(name, says, "element", "V", {"vocabulary": (c.V,)}, _nothing, bind, work, tokens=False, threaded=False)
