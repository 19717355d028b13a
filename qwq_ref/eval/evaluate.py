"""How good a model is at the 23 categories and their harder variants, on problems that no training has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..tasks import tasks
from ..tasks.tasks import Problem
from ..text import Tokenizer
from . import metrics

# What answers prompts: problems -> for each the ids that the model said, and whether it ended by itself.
Answerer = Callable[[Sequence[Problem]], Sequence[tuple[list[int], bool]]]


@dataclass(frozen=True)
class Score:
    """One category. Rates are shares of n; `low` and `high` bound the accuracy at 95 % (Wilson)."""

    category: str
    n: int
    accuracy: float
    low: float
    high: float
    format: float
    loops: float
    switches: float
    tokens: float

    def row(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class Pairs:
    """Two models at the same n problems of a category.

    lost    problems that the second answers rightly and the first does not; `gained` the other way round
    low, high  bounds, at 95 %, of what the first loses in accuracy (`metrics.paired_interval`)
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


def problems(category: str, n: int, seed: int) -> list[Problem]:
    """n problems of the test split, the same for the same seed. Small categories have fewer than 2,000 of them (a few
    hundred in countdown2 and gcd): after 3 n draws, problems come again, in either language and any wording.
    """
    number = [*tasks.CATEGORIES, *tasks.HARDER].index(category)
    rng = np.random.default_rng([seed, number])
    found: dict[str, Problem] = {}
    spare: list[Problem] = []
    for _ in range(3 * n):
        problem = tasks.sample(category, rng, "test")
        if problem.key in found:
            spare.append(problem)
        else:
            found[problem.key] = problem
        if len(found) == n:
            break
    return [*found.values(), *spare][:n]


def evaluate(answerer: Answerer, tokenizer: Tokenizer, category: str, n: int, seed: int) -> Score:
    """Ask n problems of a category."""
    asked = problems(category, n, seed)
    correct = well_formed = loops = switches = length = 0
    for problem, (ids, ended) in zip(asked, answerer(asked), strict=True):
        text = tokenizer.decode(ids)
        well_formed += metrics.format_ok(text, ended)
        correct += is_right(problem, text, ended)
        loops += metrics.is_loop(ids, ended)
        switches += metrics.language_switch(problem, text)
        length += len(ids)
    low, high = metrics.wilson_interval(correct, n)
    return Score(category, n, correct / n, low, high, well_formed / n, loops / n, switches / n, length / n)


def is_right(problem: Problem, text: str, ended: bool) -> bool:
    """Whether an output has ended by itself, and answers the problem after its reasoning."""
    _, marker, answer = text.rpartition("</think>")
    return ended and bool(marker) and tasks.check(problem, answer)


def compare(first: Answerer, second: Answerer, tokenizer: Tokenizer, category: str, n: int, seed: int) -> Pairs:
    """Ask both the same n problems of a category: those that `evaluate` asks."""
    asked = problems(category, n, seed)
    one, other = (
        [is_right(problem, tokenizer.decode(ids), ended) for problem, (ids, ended) in zip(asked, said, strict=True)]
        for said in (first(asked), second(asked))
    )
    return pairs(category, one, other)


def pairs(category: str, first: Sequence[bool], second: Sequence[bool]) -> Pairs:
    """Which of the same problems each got right -> what that says of the two."""
    n = len(first)
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    gained = sum(a and not b for a, b in zip(first, second, strict=True))
    return Pairs(category, n, sum(first) / n, sum(second) / n, lost, gained, *metrics.paired_interval(lost, gained, n))


def together(several: Sequence[Pairs], name: str) -> Pairs:
    """Pairs of several categories as those of one, in which each problem counts alike."""
    n, lost, gained = (sum(getattr(one, field) for one in several) for field in ("n", "lost", "gained"))
    accuracy, against = (sum(getattr(one, field) * one.n for one in several) / n for field in ("accuracy", "against"))
    return Pairs(name, n, accuracy, against, lost, gained, *metrics.paired_interval(lost, gained, n))
