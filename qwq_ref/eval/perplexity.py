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
    logs = log_softmax(logits[:-1])
    surprises: Array = -logs[np.arange(len(logs)), np.asarray(ids[1:])]
    return surprises


def perplexity(surprises: Array) -> float:
    """surprises [n] -> perplexity

    e to the mean surprise.
    """
    return float(np.exp(np.mean(surprises)))
