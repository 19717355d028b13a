"""Attention over a KV cache of int8 or of float32, as the core computes it, to the bit.

The context is cut into chunks of 1,024 tokens, counted from position 0. Their results are merged in ascending order.
This order and the order of every sum are fixed. So results are identical for every instruction set, any number of
threads, and any division of a prompt into calls.
"""

from __future__ import annotations

import numpy as np

from ..spec.ops import Array
from .fixed import LOG2E, exp2, lane_sum
from .integers import CHUNK, LANES, SMALLEST, rounded
from .key_bias import KeyBias, bias_scores

BLOCK = 32  # tokens whose weights share a unit
DIMS = 32  # dimensions are worked on in multiples of this
UNITS = 255 * 256  # the largest weight of a block, in its unit
LOWEST = np.float32(-(2.0**126))  # below every score

State = tuple[Array, Array, Array]


def quantise_kv(
    x: Array, halves: int = 1, gain: Array | None = None, center: Array | None = None
) -> tuple[Array, Array]:
    """x [n, h, e], gain [h, e], center [h, e] -> q [n, h, e], scale [n, h, halves]

    int8 with one scale for each token and head (values), or for each half of its dimensions (queries and keys): the
    largest magnitude becomes 127. Halves are those of the dimensions rounded up to a multiple of 32.

    `gain` multiplies first, queries by one and keys by its inverse. `center` is then subtracted, from keys only: it
    shifts all scores of a query alike, so softmax does not change.
    """
    x = x.astype(np.float32)
    if gain is not None:
        x = x * gain.astype(np.float32)
    if center is not None:
        x = x - center.astype(np.float32)
    parts = [rounded(part, (-1,), 127) for part in divided(x, halves)]
    return np.concatenate([q for q, _ in parts], axis=-1).astype(np.int8), np.concatenate(
        [s for _, s in parts], axis=-1
    )


def divided(x: Array, halves: int) -> list[Array]:
    """x [..., e] -> parts

    The last axis whole, or in halves of what it has when rounded up to a multiple of 32. The upper one may be empty.
    """
    return [x] if halves == 1 else np.split(x, [min(x.shape[-1], -(-x.shape[-1] // DIMS) * DIMS // 2)], axis=-1)


def attention_int8(
    q: Array,
    k: Array,
    k_scale: Array,
    v: Array,
    v_scale: Array,
    visible: Array,
    p_bits: int = 0,
    bias: KeyBias | None = None,
) -> Array:
    """q [T, H, E], k [S, K, E], k_scale [S, K, 2], v [S, K, E], v_scale [S, K, 1], visible [T, S] -> [T, H, E]

    `spec.attention` in integers. Queries, keys and values are int8; the weights of the softmax are rounded as in
    `weigh_int8`. Scores are logarithms to base 2: sums over both halves of the dimensions, and the share of the key
    bias that the keys leave out. Query head h reads KV head h // G.
    """
    (T, H, E), K = q.shape, k.shape[1]
    q_int, q_scale = quantise_kv(q, 2, None if bias is None else np.repeat(bias.query_gain, H // K, axis=0))
    over_root = LOG2E / np.sqrt(np.float32(E))
    state = empty_state(K, T * H // K, E)
    for first in range(0, len(k), CHUNK):
        span = slice(first, first + CHUNK)
        seen = visible[:, span]
        scores = np.zeros((), np.float32)
        halves = zip(divided(q_int, 2), divided(k[span], 2), strict=True)
        for half, (q_half, k_half) in enumerate(halves):
            dots = by_head(q_half.astype(np.int64), K) @ k_half.astype(np.int64).transpose(1, 2, 0)
            factor = by_head(q_scale[..., half, None] * over_root, K)
            scores = scores + dots.astype(np.float32) * (factor * k_scale[span, :, half].T[:, None])
        if bias is not None and bias.first.size:
            dots, scale = bias_scores(q, bias, first // CHUNK, seen.shape[1])
            scores = scores + by_head(dots.astype(np.float32), K) * by_head(scale * over_root, K)
        top, p = chunk_softmax(scores, seen)
        heads = weigh_int8(p, v[span], v_scale[span, :, 0], p_bits)
        state = merge(state, (top, lane_sum(pad(p, LANES)), heads))
    return finish(state, T)


def attention_fp32(q: Array, k: Array, v: Array, visible: Array) -> Array:
    """q [T, H, E], k [S, K, E], v [S, K, E], visible [T, S] -> [T, H, E]

    `spec.attention` in float32. A dot product is summed in 16 lanes, and the values of a chunk token by token.
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

    The rows that read each KV head: G neighbouring query heads of each token, one token after another.
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

    p = 2^(score - top), where top is the largest score that the row sees. A row that sees none has `LOWEST` and zeros.
    """
    seen_rs = np.repeat(seen, scores.shape[1] // len(seen), axis=0)
    top = np.max(np.where(seen_rs, scores, LOWEST), axis=-1, keepdims=True)
    return top, np.where(seen_rs, exp2(np.where(seen_rs, scores, top) - top), np.float32(0))


def weigh_int8(p: Array, v: Array, v_scale: Array, p_bits: int) -> Array:
    """p [K, r, s], v [s, K, E], v_scale [s, K] -> [K, r, E]

    The sum of p * v_scale * v. In each block of 32 tokens, the weights p * v_scale become integers times a unit, so
    that the largest of them is 255 * 256 (see `round_weights`). The exact integer sum, times the unit, is added to the
    sum of the blocks before. A block whose weights are all below 2^-100 counts as zero.
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

    The 16-bit weights of a block, rounded to multiples of 256 (8-bit weights) if `p_bits` is 8, unchanged if it is 16.
    If it is 0, each row decides: it keeps 16 bits if rounding changes the sum of its weights by more than 1/128.
    Such a change would scale the common part of the values; other rounding errors cancel.
    """
    narrow = (weights + 128) // 256 * 256
    if p_bits:
        return narrow if p_bits == 8 else weights
    off = np.abs(np.sum(weights - narrow, axis=-1, keepdims=True))
    return np.where(off * 128 > np.sum(weights, axis=-1, keepdims=True), weights, narrow)


def empty_state(K: int, r: int, E: int) -> State:
    """-> [K, r, 1], [K, r, 1], [K, r, E]

    The state of each row before any chunk: the largest score, the sum of p, the sum of p v.
    """
    return np.full((K, r, 1), LOWEST), np.zeros((K, r, 1), np.float32), np.zeros((K, r, E), np.float32)


def merge(state: State, chunk: State) -> State:
    """-> [K, r, 1], [K, r, 1], [K, r, E]

    The sums of both sides, scaled to the larger of the two maxima. A chunk that a row does not see changes nothing.
    """
    (top, total, heads), (chunk_top, chunk_total, chunk_heads) = state, chunk
    both = np.maximum(top, chunk_top)
    keep, add = exp2(top - both), exp2(chunk_top - both)
    return both, total * keep + chunk_total * add, heads * keep + chunk_heads * add


def finish(state: State, T: int) -> Array:
    """-> [T, H, E]

    The sum of p v of each row over its sum of p, in the order that the rows had before `by_head`.
    """
    _, total, heads = state
    K, r, E = heads.shape
    y = heads * (np.float32(1) / total)
    return y.reshape(K, T, r // T, E).transpose(1, 0, 2, 3).reshape(T, K * r // T, E)
