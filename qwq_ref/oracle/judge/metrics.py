"""Metrics of scores and logits, which need more than a distance."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...spec.ops import Array

MARGIN = 4.0  # the allowed error, in units of the error of correct implementations
_HIDDEN = -6e4  # implementations write -inf, or the lowest number of float32, bfloat16 or float16 (-65,504)


def tidy_scores(scores: Array, visible: Array, masked: bool = False) -> Array:
    """Replace all values that hide a key by -inf: scores [H, T, S], visible [T, S] -> [H, T, S]

    Scores from before the mask are accepted, too: if no score is hidden, the mask is applied here. `masked` says that
    the mask has been applied already.
    """
    hidden = scores <= _HIDDEN
    should = np.broadcast_to(~visible, scores.shape)
    if not masked and should.any() and not hidden[should].any():
        hidden = should
    return np.where(hidden, -np.inf, scores)


def seen(scores: Array, sentinel: float) -> Array:
    """Replace -inf by the finite `sentinel`, so that the difference of two masks has a size."""
    return np.where(np.isneginf(scores), sentinel, scores)


def sentinel_for(scores: Array) -> float:
    """Return a score far below all visible ones."""
    finite = scores[np.isfinite(scores)]
    return -10.0 - 10.0 * float(np.abs(finite).max()) if finite.size else -10.0


def logit_metrics(theirs: Array, right: Array, allowed: float) -> dict[str, Any]:
    """Compare two sets of logits: theirs [T, V], right [T, V] -> metrics by name.

    tokens         how many tokens were compared
    kl, kl_max     the mean and the largest KL(right || theirs) of a token, in nats
    top1           share of tokens with the same most likely token
    top5           mean overlap of the five most likely tokens
    decided        tokens whose margin between the two most likely exceeds twice the largest difference that the
                   relative error `allowed` explains; a correct implementation may swap closer ones
    top1_decided   top1 of the decided tokens
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
