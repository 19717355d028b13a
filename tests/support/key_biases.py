"""Biases of keys: what an int8 cache leaves out of its keys."""

import numpy as np

from qwq_ref.numerics import fixed
from qwq_ref.numerics.integers import CHUNK, LANES
from qwq_ref.numerics.key_bias import KeyBias, key_bias, turns_of


def frequencies(E):
    return (10_000.0 ** -(np.arange(0, E, 2) / E)).astype(np.float32)


def turns(E, capacity):
    """RoPE's angles at the first 4,096 positions, and at the first position of each chunk of a cache."""
    near = fixed.rope_tables(frequencies(E), 1.0, np.arange(4096))
    return turns_of(*near, *fixed.rope_tables(frequencies(E), 1.0, np.arange(0, max(capacity, 1), CHUNK)))


def drawn(rng, K, E, capacity, sizes=(0, 0.5, 3, 30, 200)):
    """A bias [K, E] of small and large numbers, and what keys leave out of it."""
    bias = (rng.standard_normal((K, E)) * rng.choice(sizes, (K, E))).astype(np.float32)
    queries = rng.standard_normal((2 * K, E)) * rng.choice(sizes, (2 * K, E))
    return bias, key_bias(queries, bias, turns(E, capacity))


def only_center(center):
    """A key bias that takes off a vector [K, E], and leaves out no pair."""
    K, E = center.shape
    nothing = np.zeros((K, CHUNK // LANES, 0, LANES, 2), np.int16)
    first, starts = np.zeros((K, 0), np.int32), np.zeros((1, K, 0, 2), np.float32)
    ones = np.ones((K, E), np.float32)
    return KeyBias(np.zeros((K, E), np.float32), ones, ones, center, first, nothing, np.zeros(K, np.float32), starts, 1)


def turned(bias, S):
    """bias [K, E] -> [S, K, E] in float64, as RoPE turns it at each position."""
    angles = np.arange(S)[:, None] * frequencies(bias.shape[1]).astype(np.float64)
    c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = np.split(bias.astype(np.float64), 2, axis=1)
    return np.concatenate([first * c - second * s, second * c + first * s], axis=2)
