"""How good a model is at the 23 categories and their harder variants, on problems that no training has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..text import Tokenizer
from . import metrics, tasks
from .tasks import Problem

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
        _, _, answer = text.rpartition("</think>")
        ok = metrics.format_ok(text, ended)
        well_formed += ok
        correct += ended and "</think>" in text and tasks.check(problem, answer)
        loops += metrics.is_loop(ids, ended)
        switches += metrics.language_switch(problem, text)
        length += len(ids)
    low, high = metrics.wilson_interval(correct, n)
    return Score(category, n, correct / n, low, high, well_formed / n, loops / n, switches / n, length / n)
