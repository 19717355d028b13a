"""Problems: an exercise with its category, its language and its key.

A hash of the key divides problems into training and test. The key names the problem itself, whatever its language and
wording.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .author import Author, Language
from .exercises import HARDER_MAKERS, MAKERS

CATEGORIES: tuple[str, ...] = tuple(MAKERS)
HARDER: tuple[str, ...] = tuple(HARDER_MAKERS)
Split = Literal["train", "test"]

_LANGUAGES: tuple[Language, Language] = ("en", "zh")


@dataclass(frozen=True)
class Problem:
    """One problem.

    answer  the reference answer; `check` takes from it the value, the numbers or the function that an answer must have
    key     the identity of the problem, independent of language and wording; `split` hashes it
    trace   the reasoning, without its markers
    """

    category: str
    language: Language
    prompt: str
    answer: str
    trace: str
    key: str


def generate(category: str, rng: np.random.Generator, language: Language | None = None) -> Problem:
    """Draw a problem, and its language unless one is given. The language does not change the problem."""
    drawn = _LANGUAGES[int(rng.integers(2))]
    language = language or drawn
    author = Author(rng, language)
    exercise = (MAKERS | HARDER_MAKERS)[category](author)
    conclusion = author.say("So ", "所以") + exercise.answer
    trace = "\n".join((exercise.lead, *exercise.lines, conclusion))
    return Problem(category, language, exercise.prompt, exercise.answer, trace, f"{category}: {exercise.key}")


def split(problem: Problem) -> Split:
    """Return the part that a problem belongs to. A tenth of all problems is for tests, the same on every machine."""
    digest = hashlib.blake2b(problem.key.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % 10 == 0 else "train"


def sample(category: str, rng: np.random.Generator, part: Split, language: Language | None = None) -> Problem:
    """Draw problems until one belongs to this part of the split. The language does not change the problem."""
    while split(problem := generate(category, rng, language)) != part:
        pass
    return problem


def completion(problem: Problem) -> str:
    """Return the text after the prompt, which has opened the reasoning: the trace, its end, and the boxed answer."""
    box = f"\\boxed{{{problem.answer}}}"
    sentence = f"The answer is {box}." if problem.language == "en" else f"答案是{box}。"
    return f"{problem.trace}\n</think>\n\n{sentence}"
