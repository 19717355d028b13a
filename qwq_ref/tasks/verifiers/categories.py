"""The verifier of the recipe's categories: exact checkers, which take any text and never raise."""

from __future__ import annotations

import time

from ..problems import Problem
from ..programs import evaluate, run_rpn
from .verdict import Verdict

_BOX = "\\boxed{"
# More points than the degree of any program that `rpn` asks for: programs that agree on all are the same polynomial.
_RPN_TESTS = (0, 1, 2, 3, 5, 7, 11, -1, -4)


def boxed(text: str) -> str | None:
    """Return the content of the last \\boxed{...} of a text; None if there is none, or if it is not closed."""
    _, box, after = text.rpartition(_BOX)
    inside, brace, _ = after.partition("}")
    return inside if box and brace else None


def verify(problem: Problem, text: str) -> Verdict:
    """Judge the text after </think> by `check`."""
    started = time.monotonic()
    correct = check(problem, text)
    if correct:
        why = "passed"
    elif not problem.is_talk and boxed(text) is None:
        why = "there is no closed box"
    else:
        why = "wrong answer"
    return Verdict(correct, why, time.monotonic() - started)


def check(problem: Problem, answer_text: str) -> bool:
    """Return whether the text after </think> answers the problem. Its last box decides, or all of it in talk."""
    if problem.is_talk:
        return answer_text.strip() == problem.answer
    answer = boxed(answer_text)
    if answer is None:
        return False
    if problem.category.startswith("countdown"):
        return _same_numbers_and_value(answer, problem.answer)
    if problem.category.startswith("rpn"):
        return all(run_rpn(answer, x) == run_rpn(problem.answer, x) for x in _RPN_TESTS)
    return answer.strip().replace(", ", ",") == problem.answer


def _same_numbers_and_value(expression: str, reference: str) -> bool:
    """Return whether both use the same numbers and have the same value.

    The reference uses each given number once and makes the target, so this accepts every other solution too.
    """
    value = evaluate(expression)
    return value is not None and value == evaluate(reference)
