"""Two models at the same problems: how many answers one loses against the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..text import Tokenizer
from . import accuracy
from .accuracy import Answerer, is_right
from .intervals import paired_interval


@dataclass(frozen=True)
class Pairs:
    """Two models at the same n problems of a category.

    accuracy, against  the shares of right answers of the first and of the second model
    lost, gained       problems that only the second answers correctly, and problems that only the first does
    low, high          bounds, at 95 %, of the accuracy that the first loses (`paired_interval`)
    """

    category: str
    n: int
    accuracy: float
    against: float
    lost: int
    gained: int
    low: float
    high: float

    def row(self) -> dict[str, Any]:
        return vars(self)


def compare(first: Answerer, second: Answerer, tokenizer: Tokenizer, category: str, n: int, seed: int) -> Pairs:
    """Ask both the same n problems of a category: those that `accuracy.evaluate` asks."""
    asked = accuracy.problems(category, n, seed)
    one, other = (
        [is_right(problem, tokenizer.decode(ids), ended) for problem, (ids, ended) in zip(asked, said, strict=True)]
        for said in (first(asked), second(asked))
    )
    return pairs(category, one, other)


def pairs(category: str, first: Sequence[bool], second: Sequence[bool]) -> Pairs:
    """Compare two models, given for each of the same problems whether each model's answer is right."""
    n = len(first)
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    gained = sum(a and not b for a, b in zip(first, second, strict=True))
    return Pairs(category, n, sum(first) / n, sum(second) / n, lost, gained, *paired_interval(lost, gained, n))


def pooled(several: Sequence[Pairs], name: str) -> Pairs:
    """Pool the pairs of several categories into those of one, in which each problem counts alike."""
    n, lost, gained = (sum(getattr(one, field) for one in several) for field in ("n", "lost", "gained"))
    accuracy, against = (sum(getattr(one, field) * one.n for one in several) / n for field in ("accuracy", "against"))
    return Pairs(name, n, accuracy, against, lost, gained, *paired_interval(lost, gained, n))
