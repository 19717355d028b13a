"""What attention over a stored KV-cache means: int8 keys and values, or float32 ones.

The context is cut into chunks of 1,024 tokens, anchored at position 0, which meet in ascending order. That order, and
those of every sum, are written here, so the core gives these bits whatever instructions and threads it uses, and
however a prompt is cut.
"""

from __future__ import annotations

import numpy as np

from ..spec.ops import Array
from .fixed import LOG2E, exp2, lane_sum

CHUNK = 1024  # tokens whose scores share a maximum
BLOCK = 32  # tokens whose weights share a unit
LANES = 16
UNITS = 255 * 256  # the largest weight of a block, in its unit
SMALLEST, LARGEST = np.float32(2.0**-100), np.float32(2.0**56)
LOWEST = np.float32(-(2.0**126))  # below every score

State = tuple[Array, Array, Array]


def quantise_kv(x: Array, center: Array | None = None) -> tuple[Array, Array]:
    """x [n, h, e], center [h, e] -> q [n, h, e], scale [n, h]

    int8 with one scale for each token and head: the largest magnitude becomes 127. Without any of 2^-100 all is zero;
    magnitudes above 2^56 are cut, so that no score overflows. Keys may have a fixed `center` taken off first, which
    softmax does not see, since q . center is the same for all tokens: a large bias then leaves the range to the rest.
    """
    x = x.astype(np.float32)
    if center is not None:
        x = x - center.astype(np.float32)
    largest = np.minimum(np.max(np.abs(x), axis=-1, keepdims=True), LARGEST)
    present = largest >= SMALLEST
    inverse = np.where(present, np.float32(127) / np.where(present, largest, np.float32(1)), np.float32(0))
    q = np.rint(np.clip(x * inverse, -127, 127)).astype(np.int8)
    return q, largest[..., 0] * np.float32(1 / 127)


def key_center(bias: Array, cos: Array, sin: Array) -> Array:
    """bias [K, E], cos [n, e], sin [n, e] -> [K, E]

    k_proj's bias as RoPE turns it, averaged over n positions: what is taken off int8 keys. In float64, rounded once.
    """
    first, second = np.split(bias.astype(np.float64), 2, axis=1)
    c, s = cos.mean(axis=0, dtype=np.float64), sin.mean(axis=0, dtype=np.float64)
    return np.concatenate([first * c - second * s, second * c + first * s], axis=1).astype(np.float32)


def attention_int8(
    q: Array, k: Array, k_scale: Array, v: Array, v_scale: Array, visible: Array, p_bits: int = 0
) -> Array:
    """q [T, H, E], k [S, K, E], k_scale [S, K], v [S, K, E], v_scale [S, K], visible [T, S] -> [T, H, E]

    `ops.attention` in integers: queries, keys and values are int8, the softmax's weights are rounded as in
    `weigh_int8`. Scores are logarithms to base 2. Query head h reads KV head h // G.
    """
    (T, H, E), K = q.shape, k.shape[1]
    q_int, q_scale = quantise_kv(q)
    factor = q_scale * (LOG2E / np.sqrt(np.float32(E)))
    state = empty_state(K, T * H // K, E)
    for first in range(0, len(k), CHUNK):
        span = slice(first, first + CHUNK)
        seen = visible[:, span]
        dots = by_head(q_int.astype(np.int64), K) @ k[span].astype(np.int64).transpose(1, 2, 0)
        both = by_head(factor[..., None], K) * k_scale[span].T[:, None]
        top, p = chunk_softmax(dots.astype(np.float32) * both, seen)
        heads = weigh_int8(p, v[span], v_scale[span], p_bits)
        state = merge(state, (top, lane_sum(pad(p, LANES)), heads))
    return finish(state, T)


def attention_fp32(q: Array, k: Array, v: Array, visible: Array) -> Array:
    """q [T, H, E], k [S, K, E], v [S, K, E], visible [T, S] -> [T, H, E]

    `ops.attention` in float32: a dot product is summed in 16 lanes, and a chunk's values token by token.
    """
    (T, H, E), K = q.shape, k.shape[1]
    factor = LOG2E / np.sqrt(np.float32(E))
    state = empty_state(K, T * H // K, E)
    for first in range(0, len(k), CHUNK):
        span = slice(first, first + CHUNK)
        products = by_head(q, K)[:, :, None] * k[span].transpose(1, 0, 2)[:, None]
        dots = lane_sum(pad(products, LANES))[..., 0]
        top, p = chunk_softmax(dots * factor, visible[:, span])
        heads = np.zeros((*p.shape[:2], E), np.float32)
        for i, v_t in enumerate(v[span]):
            heads = heads + p[..., i, None] * v_t[:, None]
        state = merge(state, (top, lane_sum(pad(p, LANES)), heads))
    return finish(state, T)


def by_head(x: Array, K: int) -> Array:
    """x [T, H, e] -> [K, r, e]

    The rows that read each KV head: G neighbouring query heads of each token, one token after the other.
    """
    T, H, e = x.shape
    return x.reshape(T, K, H // K, e).transpose(1, 0, 2, 3).reshape(K, T * H // K, e)


def pad(x: Array, n: int) -> Array:
    """x [..., s] -> [..., m]

    Zeros at the end, up to a multiple of n.
    """
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % n)])


def chunk_softmax(scores: Array, seen: Array) -> tuple[Array, Array]:
    """scores [K, r, s], seen [T, s] -> top [K, r, 1], p [K, r, s]

    p = 2^(score - top), where top is the largest score that the row sees; where it sees none, LOWEST and zeros.
    """
    seen_rs = np.repeat(seen, scores.shape[1] // len(seen), axis=0)
    top = np.max(np.where(seen_rs, scores, LOWEST), axis=-1, keepdims=True)
    return top, np.where(seen_rs, exp2(np.where(seen_rs, scores, top) - top), np.float32(0))


def weigh_int8(p: Array, v: Array, v_scale: Array, p_bits: int) -> Array:
    """p [K, r, s], v [s, K, E], v_scale [s, K] -> [K, r, E]

    The sum of p * v_scale * v. In each block of 32 tokens, weights w = p * v_scale are integers times a unit that
    makes the largest of them 255 * 256; the exact integer sum, times the unit, is added to those of the blocks before.
    A block whose weights all are below 2^-100 counts as zero. See `round_weights`.
    """
    w = pad(p * v_scale.T[:, None], BLOCK)
    heads = np.zeros((*p.shape[:2], v.shape[-1]), np.float32)
    for first in range(0, w.shape[-1], BLOCK):
        block = w[..., first : first + BLOCK]
        largest = np.max(block, axis=-1, keepdims=True)
        present = largest >= SMALLEST
        inverse = np.where(present, np.float32(UNITS) / np.where(present, largest, np.float32(1)), np.float32(0))
        weights = round_weights(np.rint(block * inverse).astype(np.int64), p_bits)
        values = v[first : first + BLOCK].astype(np.int64).transpose(1, 0, 2)
        exact = weights[..., : values.shape[1]] @ values
        heads = heads + exact.astype(np.float32) * (largest * np.float32(1 / UNITS))
    return heads


def round_weights(weights: Array, p_bits: int) -> Array:
    """weights [K, r, b] -> [K, r, b]

    A block's 16-bit weights to multiples of 256, which are 8-bit weights, where p_bits is 8; where it is 16, as they
    are. Where it is 0, each row decides: it keeps 16 bits if what rounding would take from the block's sum of weights,
    or add to it, is over 1/128 of that sum. Values that have a part in common would feel that; the errors of others
    cancel.
    """
    narrow = (weights + 128) // 256 * 256
    if p_bits:
        return narrow if p_bits == 8 else weights
    off = np.abs(np.sum(weights - narrow, axis=-1, keepdims=True))
    return np.where(off * 128 > np.sum(weights, axis=-1, keepdims=True), weights, narrow)


def empty_state(K: int, r: int, E: int) -> State:
    """-> [K, r, 1], [K, r, 1], [K, r, E]

    Of each row before any chunk: the largest score, the sum of p, the sum of p v.
    """
    return np.full((K, r, 1), LOWEST), np.zeros((K, r, 1), np.float32), np.zeros((K, r, E), np.float32)


def merge(state: State, chunk: State) -> State:
    """-> [K, r, 1], [K, r, 1], [K, r, E]

    Both sides' sums, brought to the larger of both maxima. A chunk that a row does not see changes nothing.
    """
    (top, total, heads), (chunk_top, chunk_total, chunk_heads) = state, chunk
    both = np.maximum(top, chunk_top)
    keep, add = exp2(top - both), exp2(chunk_top - both)
    return both, total * keep + chunk_total * add, heads * keep + chunk_heads * add


def finish(state: State, T: int) -> Array:
    """-> [T, H, E]

    Each row's sum of p v over its sum of p, and the rows as they were before `by_head`.
    """
    _, total, heads = state
    K, r, E = heads.shape
    y = heads * (np.float32(1) / total)
    return y.reshape(K, T, r // T, E).transpose(1, 0, 2, 3).reshape(T, K * r // T, E)
