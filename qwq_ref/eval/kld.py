"""The distance of a model's logits from reference logits of the same text: KL divergence and the likeliest token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..spec.ops import Array
from ..spec.sampling import checked_logits
from .means import Estimate, Mean, exponential, root


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


@dataclass(frozen=True)
class Divergence:
    """The distance of a model from a base at the same text, in the figures of llama-perplexity.

    ppl_base   the base's perplexity
    ln_ratio   ln(PPL(Q) / PPL(base))
    kld        KL(base || model) of a position, in nats: its mean, median, 99.9th percentile and maximum
    delta_p    the probability of the next token, less that in the base: its mean, and the root of its mean square
    same_top   the share of positions whose likeliest token is the base's
    """

    ppl_base: Estimate
    ln_ratio: Estimate
    mean_kld: Estimate
    median_kld: float
    percentile_999_kld: float
    maximum_kld: float
    mean_delta_p: Estimate
    rms_delta_p: Estimate
    same_top: Estimate


class Comparison:
    """The positions of a text so far, in a model and in a base. Each position takes four bytes, for the percentiles."""

    def __init__(self) -> None:
        self._klds: list[Array] = []
        self._base, self._ratio, self._kld = Mean(), Mean(), Mean()
        self._delta, self._squared, self._top = Mean(), Mean(), Mean()

    def add(self, surprises: Array, base: Array, klds: Array, same: Array) -> None:
        """surprises [n], base [n], klds [n], same [n]

        Add positions: the surprise of the next token in the model and in the base, `kl_divergence`, and `same_top`.
        """
        self._klds.append(klds.astype(np.float32))
        delta = np.exp(-surprises) - np.exp(-base)
        means = (self._base, self._ratio, self._kld, self._delta, self._squared, self._top)
        for mean, values in zip(means, (base, surprises - base, klds, delta, delta * delta, same), strict=True):
            mean.add(values)

    @property
    def divergence(self) -> Divergence:
        """The figures. Raises ValueError before the second position."""
        klds = np.concatenate([*self._klds, np.zeros(0, np.float32)])
        mean = self._kld.estimate
        return Divergence(
            exponential(self._base.estimate),
            self._ratio.estimate,
            mean,
            float(np.median(klds)),
            float(np.quantile(klds, 0.999)),
            float(klds.max()),
            self._delta.estimate,
            root(self._squared.estimate),
            self._top.estimate,
        )
