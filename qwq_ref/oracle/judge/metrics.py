"""How far two tensors are apart, in the words that people use for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...spec.ops import Array

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
    a, b = np.ravel(theirs), np.ravel(right)
    difference = energy = 0.0
    for x, y in _chunks(a, b):
        d = x - y
        total = float(d @ d)
        if total != total:  # NaN, or an infinity on either side
            finite = np.isfinite(y)
            if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
                return np.inf
            y = y[finite]
            d = x[finite] - y
            total = float(d @ d)
        difference += total if total == total else np.inf
        energy += float(y @ y)
    return _ratio(difference, energy)


def _chunks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Flat arrays in float64, a piece at a time that stays in the cache."""
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, arrays[0].size, _CHUNK):
            yield tuple(np.asarray(x[start : start + _CHUNK], np.float64) for x in arrays)


_CHUNK = 1 << 13  # small enough that a BLAS does not wake its threads for it


def _ratio(difference: float, energy: float) -> float:
    if difference == 0:
        return 0.0
    return float(np.sqrt(difference / energy)) if energy > 0 else np.inf


def distance(theirs: Array, right: Array) -> Distance:
    """All the measures. Where one of the two is infinite or NaN and the other is not, the distance is infinite."""
    a, b = np.ravel(theirs), np.ravel(right)
    gaps = np.empty(a.size, np.float32)
    largest, at = 0.0, 0
    xy = xx = yy = 0.0
    done = 0
    for x, y in _chunks(a, b):
        gap = np.abs(x - y)
        if not np.isfinite(gap).all():
            gap[(x == y) | (np.isnan(x) & np.isnan(y))] = 0  # also equal infinities
            gap[np.isnan(gap)] = np.inf
            both = np.isfinite(x) & np.isfinite(y)
            x, y = x[both], y[both]
        i = int(np.argmax(gap))
        if gap[i] > largest:
            largest, at = float(gap[i]), done + i
        gaps[done : done + len(gap)] = gap
        done += len(gap)
        xy, xx, yy = xy + float(x @ y), xx + float(x @ x), yy + float(y @ y)
    norms = float(np.sqrt(xx * yy))
    cosine = xy / norms if norms > 0 else float(xx == yy)
    rank = max(0, int(np.ceil(0.99 * gaps.size)) - 1)
    p99 = float(np.partition(gaps, rank)[rank]) if gaps.size else 0.0
    index = np.unravel_index(at, np.shape(right)) if gaps.size else ()
    return Distance(error(theirs, right), cosine, largest, tuple(int(i) for i in index), p99)


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
