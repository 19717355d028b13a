"""Problems: an exercise with its category, its language and its key.

A hash of the key divides problems into training and test. The key names the problem itself, whatever its language and
wording.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from . import shorter, talk, wordings
from .author import Author, Language
from .exercises import HARDER_MAKERS, MAKERS, Maker

FURTHER_MAKERS: dict[str, Maker] = {
    "sum": shorter.short_sum,
    "difference": shorter.short_difference,
    "times": shorter.short_product,
    "short": shorter.short,
    talk.HELLO: talk.hello,
    talk.UNKNOWN: talk.unknown,
}

CATEGORIES: tuple[str, ...] = tuple(MAKERS)
HARDER: tuple[str, ...] = tuple(HARDER_MAKERS)
FURTHER: tuple[str, ...] = tuple(FURTHER_MAKERS)  # learnt too, and kept out of the table of the 23
Split = Literal["train", "test"]

_LANGUAGES: tuple[Language, Language] = ("en", "zh")


@dataclass(frozen=True)
class Problem:
    """One problem.

    answer  the reference answer; `check` takes from it the value, the numbers or the function that an answer must have
    trace   the reasoning, without its markers
    key     the identity of the problem, independent of language and wording; `split` hashes it
    kind    whose wordings ask for it
    slots   what goes into the named places of a wording
    """

    category: str
    language: Language
    prompt: str
    answer: str
    trace: str
    key: str
    kind: str
    slots: Mapping[str, object] = field(hash=False)

    @property
    def is_talk(self) -> bool:
        """Whether the prompt is a greeting or a question that the model does not know, and so has a fixed answer."""
        return self.kind in (talk.HELLO, talk.UNKNOWN)


def generate(category: str, rng: np.random.Generator, language: Language | None = None) -> Problem:
    """Draw a problem, and its language unless one is given. The language does not change the problem."""
    drawn = _LANGUAGES[int(rng.integers(2))]
    language = language or drawn
    author = Author(rng, language)
    exercise = (MAKERS | HARDER_MAKERS | FURTHER_MAKERS)[category](author)
    prompt = wordings.plain(author, exercise.kind, exercise.slots)
    conclusion = author.say("So ", "所以") + exercise.answer
    key = f"{exercise.family or category}: {exercise.key}"
    problem = Problem(category, language, prompt, exercise.answer, "", key, exercise.kind, exercise.slots)
    lines = [exercise.lead, *exercise.lines]
    return replace(problem, trace="\n".join(lines if problem.is_talk else [*lines, conclusion]))


def reworded(problem: Problem, rng: np.random.Generator) -> Problem:
    """Return the same problem in words that a reader may choose."""
    return replace(problem, prompt=wordings.freely(Author(rng, problem.language), problem.kind, problem.slots))


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
    if problem.is_talk:
        return f"{problem.trace}\n</think>\n\n{problem.answer}"
    box = f"\\boxed{{{problem.answer}}}"
    sentence = f"The answer is {box}." if problem.language == "en" else f"答案是{box}。"
    return f"{problem.trace}\n</think>\n\n{sentence}"
