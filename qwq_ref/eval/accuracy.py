"""The accuracy of a model in the 23 categories and their harder variants, on problems that no training has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import tasks
from ..tasks import Problem
from ..text import Tokenizer
from . import outputs
from .intervals import wilson_interval

# A model that answers: problems -> for each, the output's ids, and whether an end token ended it.
Answerer = Callable[[Sequence[Problem]], Sequence[tuple[list[int], bool]]]


@dataclass(frozen=True)
class Score:
    """The result of one category. Rates are shares of n; `low` and `high` bound the accuracy at 95 % (Wilson).

    format, loops, switches  the shares of outputs that `format_ok`, `is_loop` and `language_switch` of `outputs` name
    tokens                   the mean length of an output
    """

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


def problems(category: str, n: int, seed: int) -> list[Problem]:
    """Return n problems of the test split, the same for the same seed.

    Small categories have fewer than 2,000 of them (a few hundred in countdown2 and gcd). After 3 n draws, problems come
    again, in either language and any wording.
    """
    number = [*tasks.CATEGORIES, *tasks.HARDER, *tasks.FURTHER].index(category)
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
    """Ask n problems of a category, and score the answers."""
    asked = problems(category, n, seed)
    correct = well_formed = loops = switches = length = 0
    for problem, (ids, ended) in zip(asked, answerer(asked), strict=True):
        text = tokenizer.decode(ids)
        well_formed += outputs.format_ok(text, ended)
        correct += is_right(problem, text, ended)
        loops += outputs.is_loop(ids, ended)
        switches += outputs.language_switch(problem, text)
        length += len(ids)
    low, high = wilson_interval(correct, n)
    return Score(category, n, correct / n, low, high, well_formed / n, loops / n, switches / n, length / n)


def is_right(problem: Problem, text: str, ended: bool) -> bool:
    """Return whether an output ended with an end token, and answers the problem after its reasoning."""
    _, marker, answer = text.rpartition("</think>")
    return ended and bool(marker) and tasks.check(problem, answer)
