"""What is said of one output, apart from whether it is right: form, loops, language. Pure; any text will do."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ..tasks.tasks import Problem, boxed

_WINDOW = 8  # ids that must repeat to count as repetition
_PERIODS = 3  # and how often a tail must, to be a loop
_TAIL = 24  # ids in such a tail, at least
_LONGEST_PERIOD = 64
_CJK = re.compile("[\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
# What holds letters in any language: the markers, a box, mathematics, and a LaTeX command.
_NEUTRAL = re.compile(r"</?think>|<\|\w+\|>|\\boxed\{[^{}]*\}|\$[^$]*\$|\\[A-Za-z]+")
_ENGLISH_WORD = re.compile(r"[A-Za-z]{3,}")


def format_ok(text: str, ended: bool) -> bool:
    """Whether an output, which begins inside the reasoning, has ended by itself, with one </think> and then one box.

    ended  whether an end token stopped it; the token itself is not in the text, or is no matter
    """
    _, _, answer = text.partition("</think>")
    return ended and text.count("</think>") == 1 and answer.count("\\boxed{") == 1 and boxed(answer) is not None


def repetition(ids: Sequence[int]) -> float:
    """Share of the 8-grams that occurred before in the same output: 0 where all differ, near 1 in a loop."""
    grams = [tuple(ids[at : at + _WINDOW]) for at in range(len(ids) - _WINDOW + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def periodic_tail(ids: Sequence[int]) -> bool:
    """Whether the last ids, 24 or more, repeat what is at most 64 ids long three times over or more."""
    for period in range(1, _LONGEST_PERIOD + 1):
        length = max(_TAIL, _PERIODS * period)
        if length > len(ids):
            return False
        tail = ids[len(ids) - length :]
        if all(tail[at] == tail[at + period] for at in range(length - period)):
            return True
    return False


def is_loop(ids: Sequence[int], ended: bool) -> bool:
    """Whether an output is an endless loop: cut off with a periodic tail, or more than half of its 8-grams repeated."""
    return (not ended and periodic_tail(ids)) or repetition(ids) > 0.5


def language_switch(problem: Problem, text: str) -> bool:
    """Whether an output leaves the language of its problem.

    English: it holds a Chinese character or one of the full-width or ideographic punctuation marks, wherever that is.
    Chinese: it holds three or more ASCII letters in a row, but not in a marker, \\boxed{}, $...$ or a LaTeX command.
    """
    if problem.language == "en":
        return _CJK.search(text) is not None
    return _ENGLISH_WORD.search(_NEUTRAL.sub(" ", text)) is not None


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of a proportion of which n trials showed `successes`; (0, 1) where there were none."""
    if n == 0:
        return 0.0, 1.0
    share, weight = successes / n, z * z / n
    middle = (share + weight / 2) / (1 + weight)
    spread = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    return max(0.0, middle - spread), min(1.0, middle + spread)


def paired_interval(lost: int, gained: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of a difference of two proportions over the same n trials: (lost - gained) / n; (-1, 1) where n is 0.

    lost    trials that only the first of the two got right
    gained  trials that only the second got right

    Tango's score interval (Statistics in Medicine 17, 1998): all differences that a score test does not reject, whose
    variance is that of the likeliest discordant proportions with just this difference. It holds its level for few
    discordant pairs, and for none.
    """
    if n == 0:
        return -1.0, 1.0

    def deviations(difference: float) -> float:
        """How many standard deviations the trials are above this difference; it falls as the difference grows."""
        b = (2 * n - lost + gained) * difference - lost - gained
        c = -gained * difference * (1 - difference)
        second_only = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * second_only + difference * (1 - difference))
        distance = lost - gained - n * difference
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    def crossing(low: float, high: float, level: float) -> float:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if deviations(middle) > level else (low, middle)
        return (low + high) / 2

    observed = (lost - gained) / n
    return crossing(-1.0, observed, z), crossing(observed, 1.0, -z)
