"""Properties of one output beside its correctness: form, loops, language. The functions take any text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..tasks import Problem, boxed

_WINDOW = 8  # ids that must repeat to count as repetition
_PERIODS = 3  # times that a tail must repeat to be a loop
_TAIL = 24  # ids of such a tail, at least
_LONGEST_PERIOD = 64
_CJK = re.compile("[\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
# Parts that hold letters in any language: the markers, a box, mathematics, a LaTeX command, and the model's name.
_NEUTRAL = re.compile(r"qwq-nano|</?think>|<\|\w+\|>|\\boxed\{[^{}]*\}|\$[^$]*\$|\\[A-Za-z]+")
_ENGLISH_WORD = re.compile(r"[A-Za-z]{3,}")


def format_ok(text: str, ended: bool) -> bool:
    """Return whether an output ended with an end token and holds one </think>, then one box.

    text   the output, which begins inside the reasoning; it may hold the end token or not
    ended  whether an end token stopped it
    """
    _, _, answer = text.partition("</think>")
    return ended and text.count("</think>") == 1 and answer.count("\\boxed{") == 1 and boxed(answer) is not None


def repetition(ids: Sequence[int]) -> float:
    """Return the share of the 8-grams that occurred before in the same output: 0 if all differ, near 1 in a loop."""
    grams = [tuple(ids[at : at + _WINDOW]) for at in range(len(ids) - _WINDOW + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def periodic_tail(ids: Sequence[int]) -> bool:
    """Return whether an output ends in a loop: 24 or more ids that repeat at most 64 ids three times or more."""
    for period in range(1, _LONGEST_PERIOD + 1):
        length = max(_TAIL, _PERIODS * period)
        if length > len(ids):
            return False
        tail = ids[len(ids) - length :]
        if all(tail[at] == tail[at + period] for at in range(length - period)):
            return True
    return False


def is_loop(ids: Sequence[int], ended: bool) -> bool:
    """Return whether an output is a loop: cut off with a periodic tail, or with over half of its 8-grams repeated."""
    return (not ended and periodic_tail(ids)) or repetition(ids) > 0.5


def language_switch(problem: Problem, text: str) -> bool:
    """Return whether an output leaves the language of its problem.

    English: it holds a Chinese character, or a full-width or ideographic punctuation mark, in any place.
    Chinese: it holds three or more ASCII letters in a row, outside a marker, \\boxed{}, $...$ or a LaTeX command.
    """
    if problem.language == "en":
        return _CJK.search(text) is not None
    return _ENGLISH_WORD.search(_NEUTRAL.sub(" ", text)) is not None
