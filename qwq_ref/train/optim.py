"""Muon and AdamW, the learning rate, and the clipping of gradients: functions over dicts of arrays.

The optimiser's state is such a dict too, so a run that is saved and resumed has the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..spec.ops import Array

State = dict[str, Array]

# Coefficients of the polynomial a x + b x^3 + c x^5 of `orthogonalised` (Jordan et al. 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def is_hidden(name: str, weight: Array) -> bool:
    """Whether a weight is a matrix inside a block: `muon` is for these, and `adamw` for all others."""
    return weight.ndim == 2 and ".layers." in name


def initial_state(weights: Mapping[str, Array]) -> State:
    """-> state

    The state before the first step: the count `step`, and for every weight the running mean `mean.<name>` of its
    gradient. The weights of `adamw` also have `square.<name>`, the running mean of the gradient's square.
    """
    means = {f"mean.{name}": np.zeros_like(w) for name, w in weights.items()}
    squares = {f"square.{name}": np.zeros_like(w) for name, w in weights.items() if not is_hidden(name, w)}
    return {"step": np.zeros((), np.int64), **means, **squares}


def descend(
    weights: Mapping[str, Array],
    grads: Mapping[str, Array],
    state: State,
    rate: float,
    hidden_rate: float,
    decay: float = 0.1,
) -> None:
    """Take one step down the gradients: update `weights` and `state` in place, each weight by its optimiser.

    rate         of `adamw`
    hidden_rate  of `muon`, for the matrices inside blocks
    """
    state["step"] += 1
    muon(weights, {name: g for name, g in grads.items() if is_hidden(name, g)}, state, hidden_rate, decay=decay)
    adamw(weights, {name: g for name, g in grads.items() if not is_hidden(name, g)}, state, rate, decay=decay)


def muon(
    weights: Mapping[str, Array],
    grads: Mapping[str, Array],
    state: State,
    rate: float,
    momentum: float = 0.95,
    decay: float = 0.1,
) -> None:
    """Step along the nearest orthogonal matrix to each matrix's running mean gradient.

    All singular values of a step are then about equal, so rare directions are learnt as fast as common ones. The step
    [N, M] is scaled by 0.2 sqrt(max(N, M)): at the same rate, its entries have the size of those of `adamw`.
    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the scale: Liu et al. 2025, arXiv:2502.16982; torch:
    `torch.optim.Muon(nesterov=True, adjust_lr_fn="match_rms_adamw")`.
    """
    for name, grad in grads.items():
        w, mean = weights[name], state[f"mean.{name}"]
        mean *= momentum
        mean += (1 - momentum) * grad
        ahead = momentum * mean + (1 - momentum) * grad  # Nesterov's
        w *= 1 - rate * decay
        w -= rate * 0.2 * math.sqrt(max(w.shape)) * orthogonalised(ahead)


def orthogonalised(matrix: Array, steps: int = 5) -> Array:
    """matrix [N, M] -> [N, M]

    Roughly the nearest matrix with orthogonal rows or columns: U V^T of the decomposition U S V^T. A polynomial is
    applied `steps` times to the singular values, which takes matmuls alone and leaves most of them between 0.7 and 1.2.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix / max(float(np.linalg.norm(matrix)), 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(steps):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


def adamw(
    weights: Mapping[str, Array],
    grads: Mapping[str, Array],
    state: State,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    decay: float = 0.1,
) -> None:
    """Step down the gradients, each entry by its mean over its typical size, in step `state["step"]` = 1, 2, ...

    Matrices also shrink by the factor 1 - `rate * decay`; norms and biases do not.
    Loshchilov & Hutter 2019, arXiv:1711.05101; torch: `torch.optim.AdamW`.
    """
    step, (beta1, beta2) = int(state["step"]), betas
    unbiased_rate = rate / (1 - beta1**step)
    root = math.sqrt(1 - beta2**step)
    for name, grad in grads.items():
        w, mean, square = weights[name], state[f"mean.{name}"], state[f"square.{name}"]
        if w.ndim == 2:
            w *= 1 - rate * decay
        mean *= beta1
        mean += (1 - beta1) * grad
        square *= beta2
        squared = grad * grad
        squared *= 1 - beta2
        square += squared
        size = np.sqrt(square, out=squared)
        size /= root
        size += eps
        w -= np.divide(unbiased_rate * mean, size, out=size)


def cosine_schedule(step: int, total: int, peak: float, warmup: int, floor: float = 0.0) -> float:
    """-> rate

    The learning rate of step 0, 1, ... `total` - 1. It rises in a line and reaches `peak` at the end of the first
    `warmup` steps. Half a cosine then leads down to `floor`, the rate of step `total` and beyond.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2


def clip_by_global_norm(grads: Mapping[str, Array], max_norm: float) -> float:
    """-> norm

    The norm of all gradients as one vector. If it is above `max_norm`, the gradients are scaled to that, in place.
    """
    norm = math.sqrt(sum(float(np.vdot(grad, grad)) for grad in grads.values()))
    if norm > max_norm:
        for grad in grads.values():
            grad *= max_norm / norm
    return norm
