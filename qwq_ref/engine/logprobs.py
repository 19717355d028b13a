"""The log-probabilities of output tokens under the model's own distribution, before sampling."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ..spec.ops import Array


@dataclass(frozen=True)
class TokenLogprob:
    """An id of the output, and the natural logarithm of its probability.

    logprob  None for an id that was appended, such as those that close the reasoning: it was not chosen
    top      the likeliest ids with theirs, the likeliest first, of equal ones the lowest
    """

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Recorder:
    """Chooses tokens as `choose` does, and notes their log-probabilities.

    most  likeliest ids to note with each
    end   the token of `end_ids` that ended the output: it is no part of it
    """

    def __init__(
        self,
        choose: Callable[[Array, list[int], list[int]], int],
        found: list[TokenLogprob],
        most: int,
        end_ids: Collection[int],
    ) -> None:
        self.end: TokenLogprob | None = None
        self._choose, self._found, self._most, self._end_ids = choose, found, most, end_ids

    def __call__(self, logits: Array, prompt: list[int], output: list[int]) -> int:
        """logits [V] -> the id that follows prompt and output."""
        token = self._choose(logits, prompt, output)
        if token not in self._end_ids:
            complete(self._found, output)
            self._found.append(logprob(logits, token, self._most))
        else:
            self.end = logprob(logits, token, self._most)
        return token


def complete(found: list[TokenLogprob], output: Sequence[int]) -> None:
    """Add the ids of the output that were appended to it, and not chosen."""
    found += [TokenLogprob(identity, None) for identity in output[len(found) :]]


def logprob(logits: Array, token: int, most: int) -> TokenLogprob:
    """logits [V] -> what `softmax` in float64 gives to the token, and to the `most` likeliest. -inf is in no list."""
    x = logits.astype(np.float64)
    largest = np.max(x)
    total = largest + np.log(np.sum(np.exp(x - largest)))
    edge = np.partition(logits, -most)[-most] if 0 < most < len(logits) else -np.inf
    few = np.flatnonzero(logits >= edge) if most else np.empty(0, np.int64)
    likeliest = few[np.argsort(-logits[few], kind="stable")][:most]
    top = tuple((int(i), float(x[i] - total)) for i in likeliest if x[i] > -np.inf)
    return TokenLogprob(token, float(x[token] - total), top)
