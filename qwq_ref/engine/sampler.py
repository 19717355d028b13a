"""The spec's choice of a token, for large vocabularies: top-k comes first where it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, cast

import numpy as np

from .. import core
from ..core.ops import top_k, uniform
from ..errors import UsageError
from ..spec import Sampling, distribution, draw
from ..spec.ops import Array
from ..spec.sampling import checked_logits, presence_penalty, repetition_penalty
from .values import whole_number

_MANY = 1024  # tokens from which a search for the k likeliest pays
_REST: tuple[list[str], ...] = ([], ["top_p"], ["min_p"], ["top_p", "min_p"], ["min_p", "top_p"])
_TOP_K_FIRST = [[*before, "top_k", *rest] for before in ([], ["penalties"]) for rest in _REST]


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
        if name == "top_k":
            whole_number(name, value)
        elif not isinstance(value, Real) or isinstance(value, bool | np.bool_):
            raise UsageError(None, name, f"must be a number, got {value!r:.40}")
    try:
        return Sampling(**{**own, **{name: value for name, value in changes.items() if value is not None}})
    except ValueError as problem:
        name, _, rest = str(problem).partition(" ")
        raise UsageError(None, name, rest) from None


def next_token(logits: Array, how: Sampling, prompt: Sequence[int], output: Sequence[int], seed: int) -> int:
    """logits float32 [V] -> the id to follow prompt and output: `spec.draw` of `spec.distribution`.

    The random number belongs to the position: Philox, keyed by the seed, counts positions. A generation that is rolled
    back and continued draws the same tokens. Penalties without effect are left out. Where top-k is the first filter,
    later filters see only the top-k survivors. The probabilities then equal the spec's to rounding. Raises ValueError
    as `spec.distribution`.
    """
    logits = checked_logits(logits)
    number = cast(np.random.Generator, _Number(seed, len(prompt) + len(output)))
    if how.repetition_penalty == 1 and how.presence_penalty == 0:
        how = replace(how, steps=tuple(step for step in how.steps if step != "penalties"))
    order = [step for step in how.steps if step != "temperature"]  # temperature does not change the order of logits
    if not 0 < how.top_k < len(logits) >= _MANY or order not in _TOP_K_FIRST:
        return draw(distribution(logits, how, prompt, output), number)
    if "penalties" in order:
        with np.errstate(over="ignore"):  # as in `spec.distribution`
            logits = repetition_penalty(logits.astype(np.float64), [*prompt, *output], how.repetition_penalty)
            logits = presence_penalty(logits, output, how.presence_penalty)
    ids = np.flatnonzero(~(logits < _kth_largest(logits, how.top_k)))
    rest = replace(how, steps=tuple(step for step in how.steps if step not in ("penalties", "top_k")))
    return int(ids[draw(distribution(logits[ids], rest), number)])


def _kth_largest(x: Array, k: int) -> float:
    if x.dtype == np.float32 and core.available():
        return float(top_k(x, k)[1][-1])
    return float(np.partition(x, -k)[-k])


class _Number:
    """Stands in for a generator in `draw`: it returns the number of one position, as NumPy's Philox would."""

    def __init__(self, seed: int, position: int) -> None:
        self.seed, self.position = seed, position

    def random(self) -> float:
        if core.available():
            return uniform(self.seed, self.position)
        return np.random.Generator(np.random.Philox(key=self.seed, counter=self.position)).random()
