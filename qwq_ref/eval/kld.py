"""The distance of a model's logits from reference logits of the same text: KL divergence and the likeliest token."""

from __future__ import annotations

import numpy as np

from ..spec.ops import Array
from ..spec.sampling import checked_logits


def log_softmax(x: Array) -> Array:
    """x [..., V] -> [..., V]

    The logarithms of the softmax, without overflow. Raises ValueError for a row as `spec.sampling.checked_logits`.
    """
    x = checked_logits(x)
    x = x - x.max(axis=-1, keepdims=True)
    logs: Array = x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))
    return logs


def kl_divergence(reference: Array, logits: Array) -> Array:
    """reference [T, V], logits [T, V] -> [T]

    KL(reference || logits) of each position, in nats, in the precision of the arrays.
    """
    p, q = log_softmax(reference), log_softmax(logits)
    divergence: Array = np.sum(np.exp(p) * (p - q), axis=-1)
    return divergence


def same_top(reference: Array, logits: Array) -> Array:
    """reference [T, V], logits [T, V] -> [T]

    Whether the likeliest token of each position is the same. Raises ValueError as `log_softmax`.
    """
    same: Array = checked_logits(reference).argmax(-1) == checked_logits(logits).argmax(-1)
    return same
