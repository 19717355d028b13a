"""Perplexity: how well logits predict the text that they were computed from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..spec.ops import Array
from .kld import log_softmax


def surprise(logits: Array, ids: Sequence[int]) -> Array:
    """logits [T, V], ids [T] -> [n]

    -log of the probability of each token after the first, in nats: n = T - 1.
    """
    return surprise_of_next(logits[:-1], np.asarray(ids[1:]))


def surprise_of_next(logits: Array, following: Array) -> Array:
    """logits [T, V], following [T] -> [T]

    -log of the probability of the token that follows each position, in nats.
    """
    return picked(log_softmax(logits), following)


def picked(logs: Array, following: Array) -> Array:
    """logs [T, V], following [T] -> [T]

    The surprise, given the logarithms of the probabilities.
    """
    surprises: Array = -logs[np.arange(len(logs)), following]
    return surprises


def perplexity(surprises: Array) -> float:
    """surprises [n] -> perplexity

    e to the mean surprise.
    """
    return float(np.exp(np.mean(surprises)))
