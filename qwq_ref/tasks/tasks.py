"""Problems with reasoning to learn from and exact checkers: 23 categories, and harder ones kept apart.

    problem = sample("add3", np.random.default_rng(0), "train")
    problem.prompt, completion(problem)   what is asked, and what a model should write after it
    check(problem, text)                  whether the text after </think> answers it

Train and test are split by a hash of the problem itself, whatever its language and wording. A model's text is only
ever compared, or read by the bounded readers of `programs`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .author import Author, Language
from .problems import HARDER_MAKERS, MAKERS
from .programs import evaluate, run_rpn

CATEGORIES: tuple[str, ...] = tuple(MAKERS)
HARDER: tuple[str, ...] = tuple(HARDER_MAKERS)
Split = Literal["train", "test"]

_BOX = "\\boxed{"
_LANGUAGES: tuple[Language, Language] = ("en", "zh")
# More points than the degree of any program that `rpn` asks for: one that agrees on all computes the same polynomial.
_RPN_TESTS = (0, 1, 2, 3, 5, 7, 11, -1, -4)


@dataclass(frozen=True)
class Problem:
    """One problem. The reference answer is also what `check` knows of it: its value, its numbers, what it computes.

    key    which problem this is, independent of language and wording; the split hashes it
    trace  the reasoning, without its markers
    """

    category: str
    language: Language
    prompt: str
    answer: str
    trace: str
    key: str


def generate(category: str, rng: np.random.Generator, language: Language | None = None) -> Problem:
    """Draw a problem; its language too, unless one is given (the problem is then the same in either)."""
    drawn = _LANGUAGES[int(rng.integers(2))]
    language = language or drawn
    author = Author(rng, language)
    exercise = (MAKERS | HARDER_MAKERS)[category](author)
    conclusion = author.say("So ", "所以") + exercise.answer
    trace = "\n".join((exercise.lead, *exercise.lines, conclusion))
    return Problem(category, language, exercise.prompt, exercise.answer, trace, f"{category}: {exercise.key}")


def split(problem: Problem) -> Split:
    """A tenth of all problems is for tests, the same tenth everywhere and for ever."""
    digest = hashlib.blake2b(problem.key.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % 10 == 0 else "train"


def sample(category: str, rng: np.random.Generator, part: Split, language: Language | None = None) -> Problem:
    """Draw problems until one belongs to this part of the split; as with `generate`, the same in either language."""
    while split(problem := generate(category, rng, language)) != part:
        pass
    return problem


def completion(problem: Problem) -> str:
    """What follows the prompt, which has opened the reasoning: the rest of it, its end, and the boxed answer."""
    box = f"{_BOX}{problem.answer}}}"
    sentence = f"The answer is {box}." if problem.language == "en" else f"答案是{box}。"
    return f"{problem.trace}\n</think>\n\n{sentence}"


def boxed(text: str) -> str | None:
    """What the last \\boxed{...} of a text holds; None if there is none, or the last one is not closed."""
    _, box, after = text.rpartition(_BOX)
    inside, brace, _ = after.partition("}")
    return inside if box and brace else None


def check(problem: Problem, answer_text: str) -> bool:
    """Whether the text after </think> answers the problem: its last box decides. Takes any text, never raises."""
    answer = boxed(answer_text)
    if answer is None:
        return False
    if problem.category.startswith("countdown"):
        return _same_numbers_and_value(answer, problem.answer)
    if problem.category.startswith("rpn"):
        return all(run_rpn(answer, x) == run_rpn(problem.answer, x) for x in _RPN_TESTS)
    return answer.strip().replace(", ", ",") == problem.answer


def _same_numbers_and_value(expression: str, reference: str) -> bool:
    """The reference uses each given number once and makes the target: so must the expression, in whatever way."""
    value = evaluate(expression)
    return value is not None and value == evaluate(reference)
