"""Makers of the problems beside the 23 categories: numbers of one to four digits together, and shorter lists.

A maker that draws a problem of one of the 23 names that category as the family of its key, so that the problem keeps
its part of the split.
"""

from __future__ import annotations

from collections.abc import Callable

from . import exercises
from .author import Author, Exercise


def _two(author: Author, longest: int = 4) -> tuple[int, int, int]:
    """Draw two numbers: both of one digit, or of any two lengths. The third result is their common length, or 0."""
    lengths = (1, 1) if author.chance(0.35) else (author.integer(1, longest), author.integer(1, longest))
    a, b = (author.integer(0, 9) if length == 1 else author.number(length) for length in lengths)
    return a, b, lengths[0] if lengths[0] == lengths[1] else 0


def short_sum(author: Author) -> Exercise:
    a, b, length = _two(author)
    return exercises.sum_of(author, a, b, {2: "addsub2", 3: "add3", 4: "add4"}.get(length))


def short_difference(author: Author) -> Exercise:
    """A quarter are negative. Two numbers of three or four digits are not: the larger one comes first."""
    a, b, length = _two(author)
    if a < b and (length > 2 or author.chance(0.5)):
        a, b = b, a
    return exercises.difference_of(author, a, b, {2: "addsub2", 3: "sub3", 4: "sub4"}.get(length))


def short_product(author: Author) -> Exercise:
    """One digit by one digit, or two and three digits by one."""
    if author.chance(0.75):
        b, a = sorted(author.integers(2, 0, 9))
        return exercises.product_of(author, a, b)
    return exercises.product_of(author, author.number(author.integer(2, 3)), author.integer(0, 9), "product")


def _short_compare(author: Author) -> Exercise:
    while True:
        a, b, _ = _two(author)
        if a != b:
            return exercises.compare_of(author, a, b)


def _short_minmax(author: Author) -> Exercise:
    numbers = author.distinct(author.integer(2, 4), 1, 10 ** author.integer(1, 3) - 1)
    return exercises.minmax_of(author, numbers, author.chance(0.5))


def _short_sort(author: Author) -> Exercise:
    return exercises.sort_of(author, author.distinct(author.integer(2, 4), 1, 10 ** author.integer(1, 2) - 1))


def _short_sequence(author: Author) -> Exercise:
    start, increment = author.integer(1, 30), author.integer(1, 10)
    terms = [start + place * increment for place in range(author.integer(4, 6))]
    return exercises.sequence_of(author, terms, increment)


# The family of each, and how to draw it.
_SHORT: tuple[tuple[str, Callable[[Author], Exercise]], ...] = (
    ("compare", _short_compare),
    ("minmax", _short_minmax),
    ("sort", _short_sort),
    ("sequence", _short_sequence),
    ("chain_sum", lambda author: exercises.chain_sum(author, 3, 3)),
    ("reverse", lambda author: exercises.reverse(author, 2, 4)),
    ("recall", lambda author: exercises.copy(author, 1, 4)),
    ("recall", lambda author: exercises.lookup(author, author.integer(2, 3), author.integer(1, 2))),
    ("count", lambda author: exercises.count(author, 3, 4, 3)),
    ("parity", lambda author: exercises.parity(author, 2, 4)),
    ("mod", lambda author: exercises.modulus(author, author.integer(1, 2))),
    ("missing_operand", lambda author: exercises.missing_operand(author, 1, 12)),
    ("units", lambda author: exercises.units(author, whole=True)),
)


def short(author: Author) -> Exercise:
    """Draw a problem like those of a category, with fewer numbers or digits."""
    family, maker = _SHORT[author.integer(0, len(_SHORT) - 1)]
    exercise = maker(author)
    return Exercise(**{**vars(exercise), "family": family})
