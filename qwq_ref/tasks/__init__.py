"""Problems with reasoning to learn from, and exact checkers: 23 categories, and 8 harder ones kept apart.

Six further categories are short sums and lists, greetings, and questions that the model does not know.

    problem = sample("add3", np.random.default_rng(0), "train")
    problem.prompt            the question
    reworded(problem, rng)    the same problem in words that a reader may choose
    completion(problem)       the reasoning and the answer that a model should write after it
    check(problem, text)      whether the text after </think> answers the problem

A model's text is compared, or read by the bounded readers of `programs`. It is never run as Python.
"""

from .author import Language
from .problems import CATEGORIES, FURTHER, HARDER, Problem, Split, completion, generate, reworded, sample, split
from .talk import declines
from .verifiers import boxed, check

__all__ = [
    "CATEGORIES",
    "FURTHER",
    "HARDER",
    "Language",
    "Problem",
    "Split",
    "boxed",
    "check",
    "completion",
    "declines",
    "generate",
    "reworded",
    "sample",
    "split",
]
