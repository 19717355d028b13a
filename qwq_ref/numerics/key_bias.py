"""The part of k_proj's bias that int8 keys leave out, and its share of the scores.

In some pairs of dimensions the bias is many times the rest of a key. RoPE turns it with the position, so no fixed
vector takes it off, and it would eat the range of int8. Keys without these biases have small numbers everywhere. The
scores of the biases are added in integers. With R_t as the rotation by position t, and s as the first position of a
chunk,

    q . R_(s + j) b  =  (R_s^-1 q) . (R_j b)

so one table of R_j b serves every chunk, and each query is turned back once for each chunk. Weights alone decide which
pairs are left out: a token's cache is the same in every context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..spec.ops import Array
from .integers import CHUNK, LANES, LARGEST, rounded

LARGE = 2.0  # a pair is left out if its bias moves by more than this: the rest of a key is of the order of 1
POSITIONS = 32_768  # over which the bias is looked at


@dataclass(frozen=True)
class KeyBias:
    """The bias of the keys of one layer, divided among what stays in the keys and what is left out.

    rest    [K, E]  the bias that keys keep
    key_gain, query_gain  [K, E]  factors of keys and queries before they are rounded; each pair's are inverse
    center  [K, E]  the mean of `rest` over positions, as RoPE turns it, times `key_gain`; subtracted from keys then
    first   [K, n]  int32, the first dimension of each pair that is left out; the second is E / 2 further on
    codes   [K, CHUNK / 16, n, 16, 2]  int16, the bias of these pairs at each position of a chunk, divided by `scale`
    scale   [K]
    turns   [C, K, n, 2]  cos and sin of each pair's angle at the first position of each chunk
    most    the largest code, of this table and of queries: sums of products stay below 2^31
    """

    rest: Array
    key_gain: Array
    query_gain: Array
    center: Array
    first: Array
    codes: Array
    scale: Array
    turns: Array
    most: int


@dataclass(frozen=True)
class Turns:
    """The angles of RoPE that all layers' biases need.

    near    cos and sin [CHUNK, E/2] at the positions of the first chunk, in float64
    mean    cos and sin [E/2], their means over all positions that are looked at
    moving  [E/2]  the share of a pair's squared bias that moves about its mean
    starts  cos and sin [C, E/2] at the first position of each chunk, without YaRN's scaling
    """

    near: tuple[Array, Array]
    mean: tuple[Array, Array]
    moving: Array
    starts: tuple[Array, Array]


def turns_of(cos: Array, sin: Array, start_cos: Array, start_sin: Array) -> Turns:
    """cos [P, E/2], sin [P, E/2], start_cos [C, E/2], start_sin [C, E/2] -> turns

    From RoPE's tables for the first P positions, at least `CHUNK`, and for the first positions of the chunks.
    """
    c, s = (table.astype(np.float64) for table in (cos, sin))
    mean = np.mean(c, axis=0), np.mean(s, axis=0)
    moving = np.mean(c**2 + s**2, axis=0) - mean[0] ** 2 - mean[1] ** 2
    return Turns((c[:CHUNK], s[:CHUNK]), mean, moving, (start_cos, start_sin))


def key_bias(query_bias: Array, bias: Array, turns: Turns) -> KeyBias:
    """query_bias [H, E], bias [K, E] -> found

    Every head leaves out equally many pairs, those that move most.
    """
    K, E = bias.shape
    pairs = bias.astype(np.float64).reshape(K, 2, E // 2)
    moved = np.sum(pairs**2, axis=1) * turns.moving
    moved = np.where(np.all(np.abs(pairs) <= LARGEST, axis=1), moved, 0)  # others stay, and are refused in the keys
    n = int(np.max(np.sum(moved > LARGE**2, axis=1)))
    first = np.argsort(-moved, axis=1, kind="stable")[:, :n].astype(np.int32)
    rest = bias.astype(np.float32).reshape(K, 2, E // 2)
    np.put_along_axis(rest, first[:, None], np.float32(0), axis=2)
    left = np.take_along_axis(pairs, first[:, None].astype(np.int64), axis=2)
    turned = turn(left[:, None], *(table[:, first].swapaxes(0, 1) for table in turns.near))
    most = min(32767, math.isqrt((2**31 - 1) // max(2 * n, 1)))
    largest = np.max(np.abs(turned), axis=(1, 2, 3), initial=0)
    codes = np.rint(turned * (most / np.maximum(largest, 1e-30))[:, None, None, None]).astype(np.int16)
    starts = np.stack([table[:, first] for table in turns.starts], axis=-1)
    gain, center = key_gain(query_bias, K), turn(rest.astype(np.float64), *turns.mean).reshape(K, E)
    return KeyBias(
        rest.reshape(K, E),
        gain.astype(np.float32),
        (1 / gain).astype(np.float32),
        (center * gain).astype(np.float32),
        first,
        np.ascontiguousarray(codes.transpose(0, 1, 3, 2).reshape(K, CHUNK // LANES, LANES, n, 2).swapaxes(2, 3)),
        (largest / most).astype(np.float32),
        starts.astype(np.float32),
        most,
    )


def key_gain(query_bias: Array, K: int) -> Array:
    """query_bias [H, E] -> [K, E]

    Factors of keys, in float64. A large bias of a query's pair makes the steps of int8 wide for all its dimensions.
    So queries give up a part of it, and keys take it on: the 16th root of 1 + (size / median size)^2 of the pair. The
    root is a small part, because wide steps hurt keys as much. Square roots alone give equal bits on every machine.
    """
    H, E = query_bias.shape
    pairs = query_bias.astype(np.float64).reshape(K, H // K, 2, E // 2)
    size = np.sum(np.minimum(np.abs(pairs), 1e9) ** 2, axis=(1, 2))
    median = np.median(size, axis=1, keepdims=True)
    root = np.where(median > 0, 1 + size / np.where(median > 0, median, 1), 1)
    for _ in range(4):
        root = np.sqrt(root)
    return np.concatenate([root, root], axis=1)


def turn(x: Array, cos: Array, sin: Array) -> Array:
    """x [..., 2, n], cos [..., n], sin [..., n] -> [..., 2, n]

    Pairs turned by their angles, as RoPE turns them. With -sin, they are turned back.
    """
    first, second = x[..., 0, :], x[..., 1, :]
    return np.stack([first * cos - second * sin, second * cos + first * sin], axis=-2)


def bias_scores(q: Array, bias: KeyBias, chunk: int, n: int) -> tuple[Array, Array]:
    """q [T, H, E] -> dots [T, H, n], scale [T, H, 1]

    The bias's share of the scores of the first n tokens of a chunk, in units of `scale`. Queries are turned back to the
    chunk's first position and rounded to 16 bits.
    """
    (T, H, E), K = q.shape, len(bias.first)
    pairs = q.astype(np.float32).reshape(T, K, H // K, 2, E // 2)
    pairs = np.take_along_axis(pairs, bias.first[None, :, None, None].astype(np.int64), axis=-1)
    cos, sin = bias.turns[chunk, :, None, :, 0], bias.turns[chunk, :, None, :, 1]
    codes, scale = rounded(turn(pairs, cos, -sin), (-2, -1), bias.most)
    table = bias.codes.swapaxes(2, 3).reshape(K, CHUNK, -1, 2)[:, :n].astype(np.int64)
    dots = np.einsum("tkgin,ksni->tkgs", codes, table).reshape(T, H, n)
    return dots, scale.reshape(T, H, 1) * np.repeat(bias.scale, H // K)[:, None]
