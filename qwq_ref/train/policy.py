"""Policy gradients on one page: advantages, the clipped loss and the loss of the values, each with its gradient.

A policy is the model at temperature 1 over the ids that it may choose. Each chosen token is an action. The functions
take rows of tokens; positions that are no actions have a weight of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..spec.ops import Array


def generalised_advantages(rewards: Array, values: Array, discount: float, trace: float) -> tuple[Array, Array]:
    """rewards [T], values [T] -> advantages [T], returns [T]

    The generalised advantage estimate of each action of one answer, and the targets of the values. After the last
    action, the value is 0. With discount = trace = 1, the return is the sum of all later rewards.
    Schulman et al. 2016, arXiv:1506.02438, equation 16; TRL: `PPOTrainer`.
    """
    advantages = np.zeros_like(values)
    later, next_value = 0.0, 0.0
    for t in reversed(range(len(values))):
        surprise = rewards[t] + discount * next_value - values[t]
        later = surprise + discount * trace * later
        advantages[t], next_value = later, values[t]
    return advantages, advantages + values


def whitened(advantages: Array) -> Array:
    """advantages [N] -> [N], with a mean of 0 and a standard deviation of 1."""
    white: Array = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return white


def group_advantages(rewards: Sequence[float] | Array, group: int) -> Array:
    """rewards [N] -> [N]

    (r - mean) / std within each `group` of answers to one prompt, which follow each other. A group of equal rewards
    teaches nothing: its advantages are 0.
    GRPO: Shao et al. 2024, arXiv:2402.03300, section 4.1.2; TRL: `GRPOTrainer`.
    """
    grouped = np.asarray(rewards, np.float64).reshape(-1, group)
    deviation = grouped.std(axis=1, keepdims=True)
    centred = grouped - grouped.mean(axis=1, keepdims=True)
    return np.where(deviation > 1e-8, centred / (deviation + 1e-8), 0.0).reshape(-1)


class Actions(NamedTuple):
    """The probabilities of a policy: of the chosen tokens [..., ] and of all ids [..., V], and the entropy [...]."""

    logp: Array
    probs: Array
    entropy: Array


def actions(logits: Array, ids: Array, allowed: Array) -> Actions:
    """logits [..., V], ids [...], allowed [V] -> actions

    The log-probability of each chosen id, where only the `allowed` ids can be chosen.
    """
    masked = np.where(allowed, logits, -np.inf)
    masked -= masked.max(axis=-1, keepdims=True)
    log_sum = np.log(np.sum(np.exp(masked), axis=-1, keepdims=True))
    log_all = masked - log_sum
    probs = np.exp(log_all)
    entropy = -np.sum(probs * np.where(allowed, log_all, 0.0), axis=-1)
    logp = np.take_along_axis(log_all, ids[..., None], axis=-1)[..., 0]
    return Actions(logp, probs, entropy)


class Surrogate(NamedTuple):
    """A loss, its gradient by the logits [..., V], and the sum of the weights of the actions that the clip stops."""

    loss: float
    dlogits: Array
    clipped: float


def clipped_surrogate(
    now: Actions, ids: Array, old: Array, advantages: Array, share: Array, clip: float, bonus: float = 0.0
) -> Surrogate:
    """now, ids [...], old [...], advantages [...], share [...] -> surrogate

    The loss -share * min(r A, clip(r, 1 - clip, 1 + clip) A) of every action, with r = exp(logp - old), summed; and
    -share * bonus * entropy. An action whose ratio has left the interval in the direction of its advantage has no
    gradient.
    Schulman et al. 2017, arXiv:1707.06347, equation 7; TRL: `PPOTrainer`.
    """
    ratio = np.exp(now.logp - old)
    inside = np.clip(ratio, 1 - clip, 1 + clip)
    loss = -np.sum(share * np.minimum(ratio * advantages, inside * advantages))
    moves = ratio * advantages <= inside * advantages  # the unclipped term is the smaller one
    slope = np.where(moves, -share * ratio * advantages, 0).astype(now.probs.dtype)
    dlogits = -slope[..., None] * now.probs
    at = np.take_along_axis(dlogits, ids[..., None], axis=-1) + slope[..., None]
    np.put_along_axis(dlogits, ids[..., None], at, axis=-1)
    if bonus:
        loss -= bonus * np.sum(share * now.entropy)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_all = np.where(now.probs > 0, np.log(now.probs), 0)
        dlogits += (bonus * share[..., None] * now.probs * (log_all + now.entropy[..., None])).astype(dlogits.dtype)
    return Surrogate(float(loss), dlogits, float(np.sum(share * ~moves)))


def value_loss(values: Array, returns: Array, share: Array) -> tuple[float, Array]:
    """values [...], returns [...], share [...] -> loss, dvalues [...]

    Half the squared error of each value, times its share, summed.
    """
    error = values - returns
    return float(np.sum(share * error * error) / 2), (share * error).astype(values.dtype)
