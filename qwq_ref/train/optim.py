"""AdamW, its learning rate, and the clipping of gradients: functions over dicts of arrays.

The optimiser's state is such a dict too, so a run that is saved and resumed has the same bits.
Loshchilov & Hutter 2019, arXiv:1711.05101; torch: `torch.optim.AdamW`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..spec.ops import Array

State = dict[str, Array]


def initial_state(weights: Mapping[str, Array]) -> State:
    """-> state

    The state before the first step: the count `step`, and for every weight the running mean `mean.<name>` of its
    gradient and `square.<name>` of the gradient's square.
    """
    means = {f"mean.{name}": np.zeros_like(w) for name, w in weights.items()}
    squares = {f"square.{name}": np.zeros_like(w) for name, w in weights.items()}
    return {"step": np.zeros((), np.int64), **means, **squares}


def adamw(
    weights: Mapping[str, Array],
    grads: Mapping[str, Array],
    state: State,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    decay: float = 0.1,
) -> None:
    """Take one step down the gradients: update `weights` and `state` in place.

    Matrices also shrink by the factor 1 - `rate * decay`; norms and biases do not.
    """
    state["step"] += 1
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
