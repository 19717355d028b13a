"""How far two tensors are apart, in the words that people use for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..spec.ops import Array

_HIDDEN = -6e4  # implementations write -inf, float32's or bfloat16's least number, or float16's -65,504


@dataclass(frozen=True)
class Distance:
    """error is sqrt(sum (a - b)^2 / sum b^2): 0.01 is one per cent; its square is the NMSE.

    cosine   of the angle between the two
    max_abs  the largest difference, and `at` its index
    p99      99 of 100 differences are no larger
    """

    error: float
    cosine: float
    max_abs: float
    at: tuple[int, ...]
    p99: float

    @property
    def nmse(self) -> float:
        return self.error**2


def error(theirs: Array, right: Array) -> float:
    """sqrt(sum (theirs - right)^2 / sum right^2) in float64; infinities that agree in place count as nothing.

    NaN, and infinities that do not agree, are an infinite error.
    """
    difference, energy = _energies(theirs, right)
    return _ratio(difference, energy)


def _energies(theirs: Array, right: Array) -> tuple[float, float]:
    a, b = np.asarray(theirs, np.float64).ravel(), np.asarray(right, np.float64).ravel()
    finite = np.isfinite(b)
    if not finite.all():
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return np.inf, 1.0
        a, b = a[finite], b[finite]
    difference = a - b
    total = float(difference @ difference)
    return (total if total == total else np.inf), float(b @ b)


def _ratio(difference: float, energy: float) -> float:
    if difference == 0:
        return 0.0
    return float(np.sqrt(difference / energy)) if energy > 0 else np.inf


def distance(theirs: Array, right: Array) -> Distance:
    """All the measures. Where one of the two is infinite or NaN and the other is not, the distance is infinite."""
    a, b = np.asarray(theirs, np.float64), np.asarray(right, np.float64)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(a - b)
    gaps[(a == b) | (np.isnan(a) & np.isnan(b))] = 0  # also equal infinities
    gaps[np.isnan(gaps)] = np.inf
    at = np.unravel_index(int(np.argmax(gaps)), gaps.shape) if gaps.size else ()
    flat = gaps.ravel()
    rank = max(0, int(np.ceil(0.99 * flat.size)) - 1)
    p99 = float(np.partition(flat, rank)[rank]) if flat.size else 0.0
    both = np.isfinite(a) & np.isfinite(b)
    x, y = (a[both], b[both]) if not both.all() else (a.ravel(), b.ravel())
    norms = float(np.sqrt((x @ x) * (y @ y)))
    cosine = float(x @ y) / norms if norms > 0 else float(np.array_equal(x, y))
    largest = float(gaps[at]) if gaps.size else 0.0
    return Distance(error(a, b), cosine, largest, tuple(int(i) for i in at), p99)


def tidy_scores(scores: Array, visible: Array, masked: bool = False) -> Array:
    """scores [H, T, S], visible [T, S] -> the same with -inf for every way of hiding a key.

    Scores from before the mask are as good as those after it: if none is hidden, those are that should be, unless they
    are known to be `masked` already.
    """
    hidden = scores <= _HIDDEN
    should = np.broadcast_to(~visible, scores.shape)
    if not masked and should.any() and not hidden[should].any():
        hidden = should
    return np.where(hidden, -np.inf, scores)


def seen(scores: Array, sentinel: float) -> Array:
    """Scores with a finite value in the place of -inf, so that masks can be compared by how much they differ in."""
    return np.where(np.isneginf(scores), sentinel, scores)


def sentinel_for(scores: Array) -> float:
    """A score that is far below those that are visible here."""
    finite = scores[np.isfinite(scores)]
    return -10.0 - 10.0 * float(np.abs(finite).max()) if finite.size else -10.0


def logit_metrics(theirs: Array, right: Array, allowed: float) -> dict[str, Any]:
    """theirs [T, V], right [T, V] -> what people ask about logits.

    kl             mean of KL(right || theirs) over the tokens, in nats; kl_max the largest
    top1, top5     share of tokens whose most likely token is the same; mean overlap of the five most likely
    top1_decided   the same where the right margin is more than twice the largest difference that `allowed`, a relative
                   error, explains: nearer ties may fall either way in a correct implementation
    """
    a, b = np.asarray(theirs, np.float64), np.asarray(right, np.float64)
    p, q = _log_softmax(b), _log_softmax(a)
    kl = np.maximum(np.sum(np.exp(p) * (p - q), axis=-1), 0)
    k = min(5, b.shape[-1])
    ours, others = (np.argsort(-x, axis=-1, kind="stable")[:, :k] for x in (b, a))
    overlap = np.mean([len(set(x) & set(y)) / k for x, y in zip(ours, others, strict=True)])
    same = ours[:, 0] == others[:, 0]
    margin = b[np.arange(len(b)), ours[:, 0]] - b[np.arange(len(b)), ours[:, min(1, k - 1)]]
    slack = 4 * allowed * np.sqrt(np.mean(b**2, axis=-1))  # 4 sigma of a difference of that relative size
    decided = margin > 2 * slack
    return {
        "tokens": len(b),
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
        "top1": float(same.mean()),
        "top5": float(overlap),
        "decided": int(decided.sum()),
        "top1_decided": float(same[decided].mean()) if decided.any() else 1.0,
    }


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True)))
