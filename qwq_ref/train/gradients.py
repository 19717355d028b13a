"""Gradients: the vector-Jacobian product of every operation of the spec.

`op_vjp(inputs, dy)` takes the inputs of the operation and the gradient of a loss by its output. It returns the gradient
by each input. It recomputes intermediate results, so that a caller keeps inputs alone. `...` are the axes of a batch,
such as B sequences of T tokens.

The forward functions are the spec's own where they work on rows, one token each. Attention looks at other tokens, so it
has a version for batches here.
"""

from __future__ import annotations

import numpy as np

from ..spec.ops import Array, rope, softmax


def embed_vjp(ids: Array, w: Array, dy: Array) -> Array:
    """ids [...], w [V, D], dy [..., D] -> [V, D]

    Each row of the table adds up the gradients of all positions that hold its token, in their order.
    """
    ids, dy = ids.reshape(-1), _rows(dy)
    order = np.argsort(ids, kind="stable")
    tokens, starts = np.unique(ids[order], return_index=True)
    dw = np.zeros_like(w)
    dw[tokens] = np.add.reduceat(dy[order], starts, axis=0)  # np.add.at would take one row at a time
    return dw


def linear_vjp(x: Array, w: Array, b: Array | None, dy: Array) -> tuple[Array, Array, Array | None]:
    """x [..., n], w [m, n], b [m], dy [..., m] -> [..., n], [m, n], [m]

    The gradients by x, w and b; the last is None if there is no bias.
    """
    rows = _rows(dy)
    dx = (rows @ w).reshape(x.shape)
    return dx, rows.T @ _rows(x), None if b is None else rows.sum(axis=0)


def rmsnorm_vjp(x: Array, w: Array, eps: float, dy: Array) -> tuple[Array, Array]:
    """x [..., D], w [D], dy [..., D] -> [..., D], [D]

    The gradients by x and w. A step along x does not change the direction of x, so that part of dy is removed, but for
    the small part that eps leaves.
    """
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    scale = 1 / np.sqrt(mean_square + eps)
    normalised = x * scale
    dw = np.einsum("nd,nd->d", _rows(dy), _rows(normalised))
    dx = dy * w
    normalised *= np.einsum("...d,...d->...", dx, normalised)[..., None] / x.shape[-1]
    dx -= normalised
    dx *= scale
    return dx, dw


def rope_vjp(cos: Array, sin: Array, dy: Array) -> Array:
    """cos [..., E], sin [..., E], dy [..., N, E] -> [..., N, E]

    The transpose of a rotation is the rotation back. The tables are those of `rope_tables`: both halves of E are equal.
    """
    N, E = dy.shape[-2:]
    return rope(dy.reshape(-1, N, E), _rows(cos), -_rows(sin)).reshape(dy.shape)


def softmax_vjp(x: Array, dy: Array) -> Array:
    """x [..., S], dy [..., S] -> [..., S]"""
    return _through_softmax(softmax(x), dy.copy())


def attention(q: Array, k: Array, v: Array, visible: Array, segments: Array | None = None) -> Array:
    """q [B, T, H, E], k [B, T, K, E], v [B, T, K, E], visible [T, T], segments [B, T] -> [B, T, H, E]

    The spec's `attention` for each sequence of a batch. `segments` numbers the sequences that are packed into one row:
    a query sees only keys of its own. Every query must see at least one key.
    """
    return mixed(attention_probs(q, k, visible, segments), v)


def attention_probs(q: Array, k: Array, visible: Array, segments: Array | None = None) -> Array:
    """q [B, T, H, E], k [B, S, K, E], visible [..., T, S], segments [B, T] -> [B, K, G, T, S]

    The weight of each key for each query. The G query heads of one key-value head lie one below the other, so that one
    matmul serves them all.
    """
    (B, T, H, E), (_, S, K, _) = q.shape, k.shape
    probs: Array = _grouped(q, K) @ k.transpose(0, 2, 3, 1)
    probs = probs.reshape(B, K, H // K, T, S)
    probs *= E**-0.5
    probs += _mask(visible, segments).astype(q.dtype)
    probs -= probs.max(axis=-1, keepdims=True)
    np.exp(probs, out=probs)
    probs /= probs.sum(axis=-1, keepdims=True)
    return probs


def mixed(probs: Array, v: Array) -> Array:
    """probs [B, K, G, T, S], v [B, S, K, E] -> [B, T, H, E]

    The values, averaged for each query head.
    """
    B, K, G, T, S = probs.shape
    return _ungrouped(probs.reshape(B, K, G * T, S) @ v.transpose(0, 2, 1, 3), T)


def attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    visible: Array,
    dy: Array,
    segments: Array | None = None,
    probs: Array | None = None,
) -> tuple[Array, Array, Array]:
    """q [B, T, H, E], k [B, T, K, E], v [B, T, K, E], visible [T, T], dy [B, T, H, E], segments [B, T], \
probs [B, K, G, T, T] -> [B, T, H, E], [B, T, K, E], [B, T, K, E]

    The gradients by q, k and v. `probs` are those of the forward; they are recomputed if they are not given.
    """
    (B, T, _, E), K = q.shape, k.shape[2]
    if probs is None:
        probs = attention_probs(q, k, visible, segments)
    probs = probs.reshape(B, K, -1, T)
    dy, q = _grouped(dy, K), _grouped(q, K)

    dv = probs.swapaxes(2, 3) @ dy
    dscores = _through_softmax(probs, dy @ v.transpose(0, 2, 3, 1))
    dscores *= E**-0.5
    dq = dscores @ k.transpose(0, 2, 1, 3)
    dk = dscores.swapaxes(2, 3) @ q
    return _ungrouped(dq, T), dk.transpose(0, 2, 1, 3), dv.transpose(0, 2, 1, 3)


def swiglu_vjp(gate: Array, up: Array, beta: float, dy: Array) -> tuple[Array, Array]:
    """gate [..., F], up [..., F], dy [..., F] -> [..., F], [..., F]

    The gradients by gate and up. The slope of swish is sigmoid + beta swish (1 - sigmoid).
    """
    sigmoid = _sigmoid(beta * gate)
    swish = gate * sigmoid
    dgate = 1 - sigmoid
    dgate *= swish
    dgate *= beta
    dgate += sigmoid
    dgate *= up
    dgate *= dy
    swish *= dy
    return dgate, swish


def cross_entropy(logits: Array, targets: Array, weight: Array, total: float | None = None) -> tuple[float, Array]:
    """logits [..., V], targets [...], weight [...] -> loss, [..., V]

    The mean of -log softmax(logits)[target] over all positions, each counted `weight` times, and its gradient by the
    logits. `total` is the sum of all weights of the batch, where these are a part of it. ValueError if it is not
    positive.
    """
    total = float(weight.sum()) if total is None else total
    if not total > 0:
        raise ValueError(f"the weights of the positions must have a positive sum, got {total}")
    share = (weight.reshape(-1, 1) / total).astype(logits.dtype)
    shifted, at_target = _rows(logits), targets.reshape(-1, 1)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, at_target, axis=-1)
    dlogits = np.exp(shifted, out=shifted)
    sums = dlogits.sum(axis=-1, keepdims=True)
    loss = float(np.sum(share * (np.log(sums) - chosen)))
    dlogits *= share / sums
    dlogits[np.arange(len(dlogits)), at_target[:, 0]] -= share[:, 0]
    return loss, dlogits.reshape(logits.shape)


def _rows(x: Array) -> Array:
    """x [..., n] -> [N, n]"""
    return x.reshape(-1, x.shape[-1])


def _grouped(x: Array, K: int) -> Array:
    """x [B, T, H, E] -> [B, K, GT, E]"""
    B, T, H, E = x.shape
    return x.reshape(B, T, K, H // K, E).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, E)


def _ungrouped(x: Array, T: int) -> Array:
    """x [B, K, GT, E] -> [B, T, H, E]"""
    B, K, _, E = x.shape
    return x.reshape(B, K, -1, T, E).transpose(0, 3, 1, 2, 4).reshape(B, T, -1, E)


def _mask(visible: Array, segments: Array | None) -> Array:
    """visible [T, T], segments [B, T] -> [..., T, T]

    The mask to add to scores: 0 where a query may look, else -inf.
    """
    if segments is not None:
        visible = visible & (segments[:, None, None, :, None] == segments[:, None, None, None, :])
    return np.where(visible, 0.0, -np.inf)


def _through_softmax(probs: Array, dprobs: Array) -> Array:
    """probs [..., S], dprobs [..., S] -> [..., S]

    The gradient by the scores, which overwrites `dprobs`. It sums to zero, because probabilities sum to one.
    """
    dprobs -= np.einsum("...s,...s->...", probs, dprobs)[..., None]
    dprobs *= probs
    return dprobs


def _sigmoid(x: Array) -> Array:
    """x [...] -> [...]

    As in the spec's swiglu, the argument of exp is never positive.
    """
    sigmoid: Array = np.exp(np.minimum(x, 0))
    sigmoid /= 1 + np.exp(-np.abs(x))
    return sigmoid
