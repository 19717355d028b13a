"""The author of an exercise: draws its numbers and words from one generator, in one of two languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class Exercise:
    """One problem as its maker returns it.

    key     names the problem, whatever its language and wording
    kind    whose wordings ask for it
    slots   what goes into the named places of a wording
    lead    the first line of the reasoning
    family  the category to which the key belongs, if it is not the maker's own
    """

    key: str
    kind: str
    slots: Mapping[str, object]
    lead: str
    lines: Sequence[str]
    answer: str
    family: str | None = None


class Author:
    """Draws the numbers and the words of an exercise from one generator, in one language."""

    def __init__(self, rng: np.random.Generator, language: Language) -> None:
        self._rng = rng
        self._language = language

    def integer(self, low: int, high: int) -> int:
        """Draw an integer from low to high, both included."""
        return int(self._rng.integers(low, high, endpoint=True))

    def integers(self, count: int, low: int, high: int) -> list[int]:
        return [self.integer(low, high) for _ in range(count)]

    def number(self, digits: int) -> int:
        """Draw an integer of exactly so many digits."""
        return self.integer(10 ** (digits - 1), 10**digits - 1)

    def digit_string(self, shortest: int, longest: int) -> str:
        return "".join(map(str, self.integers(self.integer(shortest, longest), 0, 9)))

    def distinct(self, count: int, low: int, high: int) -> list[int]:
        return [low + int(place) for place in self._rng.choice(high - low + 1, count, replace=False)]

    def shuffled(self, items: Sequence[int]) -> list[int]:
        return [items[place] for place in self._rng.permutation(len(items))]

    def pick(self, choices: Sequence[str]) -> str:
        return choices[self.integer(0, len(choices) - 1)]

    @property
    def language(self) -> Language:
        return self._language

    def say(self, en: str, zh: str) -> str:
        return en if self._language == "en" else zh

    def chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)
