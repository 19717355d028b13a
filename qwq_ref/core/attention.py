"""Attention over a stored KV-cache, int8 or float32: the wrappers. `numerics.kv` says what they compute, to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._ffi import Array, CoreError, at, check, expect, ffi, library
from .dtypes import single
from .isa import isa_number
from .memory import aligned
from .threads import checked_threads

PAGE = 128  # positions of a page
_CHUNK, _LANES = 1024, 16  # positions of a chunk, and of one line of the table of a key bias
_MOST_TOKENS = 1 << 30


@dataclass(frozen=True)
class KeyBias:
    """The arrays of a `numerics.key_bias.KeyBias`, as C reads them."""

    rest: Array
    key_gain: Array
    query_gain: Array
    center: Array
    first: Array
    codes: Array
    scale: Array
    turns: Array
    most: int

    @classmethod
    def of(cls, bias: Any, capacity: int, K: int, E: int) -> KeyBias:
        """Check a key bias for K heads of E dimensions and so many tokens, and align it. Raises CoreError."""
        n = bias.first.shape[-1]
        table = (K, _CHUNK // _LANES, n, _LANES, 2)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("rest", "key_gain", "query_gain", "center"), (K, E))
        shapes |= {"first": (K, n), "codes": table, "scale": (K,), "turns": (len(bias.turns), K, n, 2)}
        for name, shape in shapes.items():
            expect(name, getattr(bias, name), shape)
        if n and len(bias.turns) * _CHUNK < capacity:
            raise CoreError(
                None, "turns", f"are for {len(bias.turns) * _CHUNK} tokens, but the cache is for {capacity}"
            )
        if n and not 0 <= bias.first.min() <= bias.first.max() < E // 2:
            raise CoreError(None, "first", f"must be 0 to {E // 2 - 1}")
        codes = aligned(bias.codes.nbytes).view(np.int16).reshape(table)
        codes[:] = bias.codes
        return cls(
            single("rest", bias.rest),
            single("key_gain", bias.key_gain),
            single("query_gain", bias.query_gain),
            single("center", bias.center),
            np.ascontiguousarray(bias.first, np.int32),
            codes,
            single("scale", bias.scale),
            single("turns", bias.turns),
            bias.most,
        )


@dataclass(frozen=True)
class KV:
    """The keys and values of one layer, for `capacity` tokens, as the kernels read them: in pages of 128 tokens.

    form    "int8" or "fp32"
    pages   uint64 [capacity / 128, rounded up]: addresses of pages, multiples of 64. The caller holds their memory
    bias    what int8 keys leave out of their bias; None: nothing
    offset  bytes from the beginning of a page to the layer's part of it. In int8, this part has 2 E + 12 bytes for each
            token and head; in float32, 8 E
    buffer  the memory of the pages, if the cache has its own
    """

    form: str
    pages: Array
    capacity: int
    K: int
    E: int
    bias: KeyBias | None = None
    offset: int = 0
    buffer: Array | None = None

    @classmethod
    def within(cls, form: str, buffer: Array, capacity: int, K: int, E: int, bias: KeyBias | None = None) -> KV:
        """Return a cache whose pages follow one another in a buffer of `kv_bytes` bytes, uint8."""
        pages = buffer.ctypes.data + np.arange(pages_of(capacity), dtype=np.uint64) * np.uint64(page_bytes(form, K, E))
        return cls(form, pages.astype(np.uint64), capacity, K, E, bias, buffer=buffer)


def pages_of(tokens: int) -> int:
    """Return the pages that hold so many tokens."""
    return -(-tokens // PAGE)


def page_bytes(form: str, K: int, E: int) -> int:
    """Return the bytes of a layer's part of a page. 0: there can be no such cache."""
    return int(library().qwq_kv_page_bytes(ffi.new("qwq_kv *", {"K": K, "E": E, "int8": form == "int8"})))


def kv_bytes(form: str, capacity: int, K: int, E: int) -> int:
    """Return the bytes of a cache for so many tokens."""
    return pages_of(capacity) * page_bytes(form, K, E)


def c_kv(kv: KV) -> Any:
    """Return a cache as a `qwq_kv *` of C. The caller holds the cache."""
    bias: tuple[Any, ...] = ()
    if kv.bias is not None:
        b = kv.bias
        sizes = b.first.shape[1], len(b.turns), b.most
        bias = (
            at(b.key_gain),
            at(b.query_gain),
            at(b.center),
            *sizes,
            *(at(x) for x in (b.first, b.codes, b.scale, b.turns)),
        )
    pages = ffi.cast("uint8_t *const *", kv.pages.ctypes.data)
    return ffi.new("qwq_kv *", (pages, kv.offset, bias, kv.capacity, kv.K, kv.E, kv.form == "int8"))


def empty_kv(form: str, capacity: int, K: int, E: int, bias: KeyBias | None = None) -> KV:
    """A cache that holds nothing yet. Its keys come without the part of their bias that `bias` leaves out."""
    if form not in ("int8", "fp32"):
        raise CoreError(None, "form", f"must be int8 or fp32, got {form[:40]}")
    size = kv_bytes(form, capacity, K, E)
    if capacity > _MOST_TOKENS or (capacity and not size):
        raise CoreError(None, "capacity", f"{capacity}, with {K} heads of {E}, is more than there can be")
    return KV.within(form, aligned(size), capacity, K, E, bias)


def append(kv: KV, k: Array, v: Array, pos: int, isa: str | None = None, threads: int = 1) -> None:
    """k, v [T, K, E] into the cache at positions pos to pos + T - 1, over what was there."""
    T = len(k)
    k, v = _floats("k", k, (T, kv.K, kv.E)), _floats("v", v, (T, kv.K, kv.E))
    _fits(kv, pos, T)
    check(library().qwq_kv_append(c_kv(kv), at(k), at(v), pos, T, isa_number(isa), checked_threads(threads)))


def attention_int8(
    q: Array,
    kv: KV,
    pos: int,
    window: int | None = None,
    p_bits: int = 0,
    isa: str | None = None,
    threads: int = 1,
) -> Array:
    """q [T, H, E] at positions pos to pos + T - 1, which `kv` holds -> [T, H, E]: `numerics.kv.attention_int8`."""
    return _attention(q, kv, "int8", pos, window, p_bits, isa, threads)


def attention_fp32(
    q: Array, kv: KV, pos: int, window: int | None = None, isa: str | None = None, threads: int = 1
) -> Array:
    """q [T, H, E] at positions pos to pos + T - 1, which `kv` holds -> [T, H, E]: `numerics.kv.attention_fp32`."""
    return _attention(q, kv, "fp32", pos, window, 0, isa, threads)


def _attention(
    q: Array,
    kv: KV,
    form: str,
    pos: int,
    window: int | None,
    p_bits: int,
    isa: str | None,
    threads: int,
) -> Array:
    if kv.form != form:
        raise CoreError(None, "kv", f"holds {kv.form}, not {form}")
    if np.ndim(q) != 3:
        raise CoreError(None, "q", f"must have 3 dimensions, got shape {list(np.shape(q))}")
    T, H, _ = q.shape
    q = _floats("q", q, (T, H, kv.E))
    _fits(kv, pos, T)
    if window is not None and window < 1:
        raise CoreError(None, "window", f"must be 1 or more, got {window}")
    if H < 1 or H % kv.K:
        raise CoreError(None, "q", f"has {H} heads, which {kv.K} key-value heads cannot share")
    checked_threads(threads)
    y = np.empty((T, H, kv.E), np.float32)
    cache, queries = c_kv(kv), ffi.new("qwq_queries *", (pos, T, H, window or 0, p_bits, ffi.NULL))
    room = np.empty(library().qwq_attention_scratch(cache, queries, threads), np.uint8)
    check(library().qwq_attention(at(y), cache, at(q), at(room), queries, isa_number(isa), threads))
    return y


def _floats(name: str, x: Array, shape: tuple[int, ...]) -> Array:
    expect(name, x, shape)
    return single(name, x)


def _fits(kv: KV, pos: int, T: int) -> None:
    if pos < 0 or pos + T > kv.capacity:
        raise CoreError(None, "pos", f"positions {pos} to {pos + T - 1} do not fit in a cache of {kv.capacity}")
