"""The spec's choice of a token, for large vocabularies: top-k comes first where it may."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, cast

import numpy as np

from .. import core
from ..core.ops import top_k, uniform
from ..errors import UsageError
from ..spec import Sampling, distribution, draw
from ..spec.ops import Array
from ..spec.sampling import (
    checked_logits,
    frequency_penalty,
    logit_bias,
    presence_penalty,
    repetition_penalty,
    temperature,
)
from .values import whole_number

_MANY = 1024  # tokens from which a search for the k likeliest pays
_LARGE = 1e30  # squares of smaller numbers, and their sums, are finite
_ROUNDING = 1e-9  # from a threshold: only the spec's order of operations decides


@dataclass(frozen=True)
class Sampler:
    """Chooses each token of one generation: `how` to sample, and the `seed` of the draws."""

    how: Sampling
    seed: int

    def __call__(self, logits: Array, prompt: Sequence[int], output: Sequence[int]) -> int:
        """logits [V] -> the id that follows prompt and output."""
        return next_token(logits, self.how, prompt, output, self.seed)


def own_sampling(own: Mapping[str, Any], **changes: Any) -> Sampling:
    """Return a model's own sampling with changes; None keeps a value. Raises UsageError."""
    for name, value in changes.items():
        if value is None or name == "steps":
            continue
        if name in ("top_k", "penalty_window"):
            whole_number(name, value)
        elif name == "logit_bias":
            if not isinstance(value, Mapping):
                raise UsageError(None, name, f"must map token ids to numbers, got {value!r:.40}")
            for identity, bias in value.items():
                whole_number(name, identity)
                _real(name, bias)
        else:
            _real(name, value)
    try:
        return Sampling(**{**own, **{name: value for name, value in changes.items() if value is not None}})
    except ValueError as problem:
        name, _, rest = str(problem).partition(" ")
        raise UsageError(None, name, rest) from None


def _real(name: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        raise UsageError(None, name, f"must be a number, got {value!r:.40}")


def check_bias(bias: Mapping[int, float], vocabulary: int, never: Sequence[range]) -> None:
    """Raise UsageError for a bias of an id that cannot be chosen, and for one that leaves nothing to choose."""
    wrong = [identity for identity in bias if identity >= vocabulary or any(identity in ids for ids in never)]
    if wrong:
        raise UsageError(None, "logit_bias", f"must name ids of tokens, below {vocabulary}, got {wrong[0]}")
    if list(bias.values()).count(-np.inf) >= vocabulary - sum(map(len, never)):
        raise UsageError(None, "logit_bias", "excludes every token")


def next_token(logits: Array, how: Sampling, prompt: Sequence[int], output: Sequence[int], seed: int) -> int:
    """logits float32 [V] -> the id to follow prompt and output: `spec.draw` of `spec.distribution`.

    The random number belongs to the position: Philox, keyed by the seed, counts positions. A generation that is rolled
    back and continued draws the same tokens. Bias and penalties are computed for the tokens that they change. Later
    filters see only the survivors of the first one. The probabilities then equal the spec's to rounding. Raises
    ValueError as `spec.distribution`.
    """
    logits = checked_logits(logits)
    plan = _plan(how)
    number = cast(np.random.Generator, _Number(seed, len(prompt) + len(output)))
    if len(logits) < _MANY or plan.first is None or (plan.first == "top_k" and how.top_k >= len(logits)):
        return draw(distribution(logits, how, prompt, output), number)
    logits = _changed(logits, how, prompt if plan.penalises else (), output if plan.penalises else ())
    if plan.first == "greedy":
        return int(np.argmax(logits))
    few = _FILTERS[plan.first](logits, getattr(how, plan.first), plan.heat)
    if few is None:
        return draw(distribution(logits, plan.whole, prompt, output), number)
    return int(few[draw(distribution(logits[few], plan.rest), number)])


@dataclass(frozen=True)
class _Plan:
    """How to choose a token of many.

    first      the filter that sees all tokens, by its name in `_FILTERS`; "greedy" if none is needed; None: as the spec
    penalises  whether the penalties come before it
    heat       the temperature before it
    whole      for all tokens, behind bias and penalties
    rest       for its survivors
    """

    first: str | None
    penalises: bool
    heat: float
    whole: Sampling
    rest: Sampling


@functools.lru_cache(64)
def _plan(how: Sampling) -> _Plan:
    off = {
        "penalties": not how.penalises,
        "temperature": how.temperature == 0,
        "top_n_sigma": how.top_n_sigma == 0,
        "top_k": how.top_k == 0,
        "top_p": how.top_p == 1,
        "min_p": how.min_p == 0,
        "typical_p": how.typical_p == 1,
    }
    steps = [step for step in how.steps if not off[step]]
    order = [step for step in steps if step != "temperature"]  # temperature does not change the order of logits
    penalises = order[:1] == ["penalties"]
    filters = order[1:] if penalises else order
    first = filters[0] if filters else None
    if how.temperature == 0 and not {"penalties", "typical_p"} & {*filters}:
        first = "greedy"  # the other filters keep the likeliest token
    elif first not in _FILTERS or "penalties" in filters:
        first = None
    before = steps[: steps.index(first)] if first in steps else []
    whole, rest = (tuple(step for step in steps if step not in ("penalties", name)) for name in (None, first))
    return _Plan(
        first,
        penalises,
        how.temperature if "temperature" in before else 1.0,
        replace(how, steps=whole, logit_bias={}),
        replace(how, steps=rest, logit_bias={}),
    )


def _changed(logits: Array, how: Sampling, prompt: Sequence[int], output: Sequence[int]) -> Array:
    """logits [V] -> [V], with bias and penalties, in float64 where there are any."""
    if not how.logit_bias and not prompt and not output:
        return logits
    biased = np.fromiter(how.logit_bias, np.int64, len(how.logit_bias))
    if np.any(biased >= len(logits)):
        logit_bias(logits, how.logit_bias)  # raises
    seen = np.asarray([*prompt, *output][-how.penalty_window :], np.int64)
    said = seen[max(len(seen) - len(output), 0) :]
    ids = np.unique(np.concatenate([seen, biased]))
    at_bias, at_seen, at_said = (cast(Sequence[int], np.searchsorted(ids, each)) for each in (biased, seen, said))
    values = logits[ids].astype(np.float64)
    with np.errstate(over="ignore"):  # as in `spec.distribution`
        values = logit_bias(values, dict(zip(at_bias, how.logit_bias.values(), strict=True)))
        values = repetition_penalty(values, at_seen, how.repetition_penalty)
        values = presence_penalty(values, at_said, how.presence_penalty)
        values = frequency_penalty(values, at_said, how.frequency_penalty)
    changed = logits.astype(np.float64)
    changed[ids] = values
    return checked_logits(changed)


def _top_k(logits: Array, k: int, heat: float = 1.0) -> Array:
    """logits [V] -> the ids of the k largest, and of ties with the last of them, in order."""
    with np.errstate(over="ignore"):
        rounded = logits.astype(np.float32, copy=False)  # in the same order, perhaps with more ties
    if core.available():
        index, value = top_k(rounded, k + 1)
        few = np.sort(index[:-1]) if value[-1] < value[-2] else np.flatnonzero(rounded >= value[-2])
    else:
        few = np.flatnonzero(rounded >= np.partition(rounded, -k)[-k])
    kept: Array = few[logits[few] >= np.partition(logits[few], -k)[-k]]
    return kept


def _top_n_sigma(logits: Array, n: float, heat: float) -> Array | None:
    """logits [V] -> the ids that top-n-sigma keeps, in order. None: rounding decides, or squares may overflow."""
    whole = logits.astype(np.float64)
    possible = whole[whole > -np.inf]
    largest = float(np.max(possible))
    if max(largest, -float(np.min(possible)), n) > _LARGE:
        return None
    edge = largest - n * float(np.std(possible))
    if np.min(np.abs(possible - edge)) < _ROUNDING * (1 + abs(largest)):
        return None
    return np.flatnonzero(whole > edge)


def _top_p(logits: Array, p: float, heat: float) -> Array | None:
    """logits [V] -> the ids that top-p keeps, in order. None: they are too many, or rounding decides."""
    likely = _likelihoods(logits, heat)
    few = _top_k(logits, min(_MANY, len(logits) - 1))
    likeliest_first = few[np.argsort(-logits[few], kind="stable")]
    reached = np.cumsum(likely[likeliest_first]) / np.sum(likely)
    if reached[-1] < p or np.min(np.abs(reached - p)) < _ROUNDING:
        return None
    return np.sort(likeliest_first[: np.searchsorted(reached, p) + 1])


def _min_p(logits: Array, p: float, heat: float) -> Array | None:
    """logits [V] -> the ids that min-p keeps, in order. None: rounding decides."""
    likely = _likelihoods(logits, heat)
    if np.min(np.abs(likely - p)) < _ROUNDING * p or p < _ROUNDING:
        return None
    return np.flatnonzero(likely > p)


def _likelihoods(logits: Array, heat: float) -> Array:
    """logits [V] -> float64 [V], the probabilities as parts of the largest."""
    with np.errstate(over="ignore"):  # as in `spec.distribution`
        cooled = temperature(logits.astype(np.float64), heat)
        likely: Array = np.exp(cooled - np.max(cooled))
    return likely


# Each takes logits [V], its setting and the temperature before it.
_FILTERS: dict[str, Callable[[Array, Any, float], Array | None]] = {
    "top_k": _top_k,
    "top_n_sigma": _top_n_sigma,
    "top_p": _top_p,
    "min_p": _min_p,
}


class _Number:
    """Stands in for a generator in `draw`: it returns the number of one position, as NumPy's Philox would."""

    def __init__(self, seed: int, position: int) -> None:
        self.seed, self.position = seed, position

    def random(self) -> float:
        if core.available():
            return uniform(self.seed, self.position)
        return np.random.Generator(np.random.Philox(key=self.seed, counter=self.position)).random()
