"""The reward of an answer: several parts, each by a rule that a reader can check, and each logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..eval import outputs
from ..eval.accuracy import is_right
from ..tasks import Problem


@dataclass(frozen=True)
class Reward:
    """The amounts that the parts add to the reward of an answer; 0 leaves a part out.

    correct     the answer is right: its box is checked, its form is right, and an end token ended it
    format      an end token ended it, after one </think> and one box
    language    it keeps the language of its problem
    repetition  times the share of its 8-grams that occurred before in it
    long        its length beyond three quarters of the limit: nothing there, all of it at the limit
    truncated   the limit cut it off
    """

    correct: float = 1.0
    format: float = 0.1
    language: float = 0.1
    repetition: float = -0.2
    long: float = -0.1
    truncated: float = -0.2

    def parts(self, problem: Problem, ids: Sequence[int], text: str, ended: bool, limit: int) -> dict[str, float]:
        """Return the parts of one answer by their names. Their sum is its reward.

        ids    the answer, without its end token
        text   the same, decoded: it begins inside the reasoning
        limit  the most ids that it may have
        """
        well_formed = outputs.format_ok(text, ended)
        beyond = max(0.0, len(ids) / limit - 0.75) * 4
        found = {
            "correct": float(well_formed and is_right(problem, text, ended)),
            "format": float(well_formed),
            "language": float(not outputs.language_switch(problem, text)),
            "repetition": outputs.repetition(ids),
            "long": min(beyond, 1.0),
            "truncated": float(not ended),
        }
        return {field.name: getattr(self, field.name) * found[field.name] for field in fields(self)}


PARTS = tuple(field.name for field in fields(Reward))
