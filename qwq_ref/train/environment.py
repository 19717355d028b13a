"""The source of reinforcement learning: questions, and the reward of an answer to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .. import tasks
from ..tasks import Problem
from ..text import Tokenizer
from .corpus import REWORDED, Formatter, drawn
from .reward import Reward
from .rollout import Answer


class Environment(Protocol):
    """A source of questions, and their judge.

    end_ids     ids that end an answer
    allowed     ids that an answer may hold: True or False for each of the vocabulary [V]
    max_tokens  the most ids of an answer
    """

    end_ids: Sequence[int]
    allowed: np.ndarray
    max_tokens: int

    def draw(self, rng: np.random.Generator, count: int) -> Sequence[tuple[object, list[int]]]:
        """Return `count` questions, each with the ids of its prompt."""

    def parts(self, question: object, answer: Answer) -> Mapping[str, float]:
        """Return the parts of the reward of an answer. Every answer has the same names."""


@dataclass
class Exercises:
    """Problems of the training split in some categories, in the plain wordings and in a reader's words.

    shares  how often each category comes, by its name; they need not add up to 1
    """

    formatter: Formatter
    vocabulary: int
    shares: Mapping[str, float]
    reward: Reward
    max_tokens: int

    def __post_init__(self) -> None:
        tokenizer: Tokenizer = self.formatter.tokenizer
        self.end_ids: Sequence[int] = [self.formatter.end, tokenizer.added["<|endoftext|>"]]
        self.allowed = np.arange(self.vocabulary) < tokenizer.size
        for hole in tokenizer.holes:
            self.allowed[hole.start : hole.stop] = False

    def draw(self, rng: np.random.Generator, count: int) -> list[tuple[Problem, list[int]]]:
        questions = []
        for name in drawn(self.shares, rng, count):
            problem = tasks.sample(name, rng, "train")
            if rng.random() < REWORDED:
                problem = tasks.reworded(problem, rng)
            questions.append((problem, self.formatter.prompt(problem.prompt)))
        return questions

    def parts(self, question: object, answer: Answer) -> dict[str, float]:
        assert isinstance(question, Problem)
        text = self.formatter.tokenizer.decode(answer.ids, skip_special=False)
        return self.reward.parts(question, answer.ids, text, answer.ended, self.max_tokens)
