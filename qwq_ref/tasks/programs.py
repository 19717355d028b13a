"""Readers of arithmetic and of RPN programs, as a model writes them: from any text to a result or None.

These readers take the place of a verifier that executes code. Nothing here is given to Python to run. Both readers take
time linear in the length of the text, and refuse texts that are too long, too deep or too large.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_CHARACTERS = 80  # longer text is no answer to any of the problems
_DEPTH = 8  # of parentheses
_VALUE = 10**12  # a larger result ends the run; no problem has one
_NUMBER = re.compile(r"[0-9]{1,6}")  # not \d or str.isdigit, which accept the digits of every script


class _RefusedError(Exception):
    """The text is not an expression or a program within bounds."""


@dataclass
class _Reader:
    """A recursive descent parser with one method for each rule. Spaces may stand anywhere but within a number.

    sum = product (("+" | "-") product)*    product = atom ("*" atom)*    atom = number | "(" sum ")"
    """

    text: str
    at: int = 0
    depth: int = 0
    numbers: list[int] = field(default_factory=list)

    def skip_spaces(self) -> None:
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1

    def take(self, choices: str) -> str:
        """Return the next character and step over it if it is one of `choices`, else an empty string."""
        self.skip_spaces()
        found = self.text[self.at : self.at + 1]
        if not found or found not in choices:
            return ""
        self.at += 1
        return found

    def sum(self) -> int:
        value = self.product()
        while sign := self.take("+-"):
            value = _apply(sign, value, self.product())
        return value

    def product(self) -> int:
        value = self.atom()
        while self.take("*"):
            value = _apply("*", value, self.atom())
        return value

    def atom(self) -> int:
        if self.take("("):
            return self.group()
        number = _NUMBER.match(self.text, self.at)
        if number is None:
            raise _RefusedError
        self.at = number.end()
        self.numbers.append(int(number[0]))
        return self.numbers[-1]

    def group(self) -> int:
        self.depth += 1
        if self.depth > _DEPTH:
            raise _RefusedError
        value = self.sum()
        if not self.take(")"):
            raise _RefusedError
        self.depth -= 1
        return value


def _apply(sign: str, left: int, right: int) -> int:
    value = left + right if sign == "+" else left - right if sign == "-" else left * right
    if abs(value) > _VALUE:
        raise _RefusedError
    return value


def evaluate(expression: str) -> tuple[int, list[int]] | None:
    """Read an expression of integers, + - * and parentheses, and return its value and its numbers, sorted.

    Return None for any other text, and out of bounds. A sign before a number is not part of the language.
    """
    if len(expression) > _CHARACTERS:
        return None
    reader = _Reader(expression)
    try:
        value = reader.sum()
    except _RefusedError:
        return None
    reader.skip_spaces()
    return (value, sorted(reader.numbers)) if reader.at == len(reader.text) else None


def run_rpn(program: str, x: int) -> int | None:
    """Run an RPN program of `x`, integers and + - *, and return the one value that it leaves on the stack.

    Return None for any other text, and out of bounds.
    """
    if len(program) > _CHARACTERS:
        return None
    stack: list[int] = []
    try:
        for word in program.split():
            _step(stack, word, x)
    except _RefusedError:
        return None
    return stack[0] if len(stack) == 1 else None


def _step(stack: list[int], word: str, x: int) -> None:
    if word == "x":
        stack.append(x)
    elif _NUMBER.fullmatch(word):
        stack.append(int(word))
    elif word in ("+", "-", "*") and len(stack) >= 2:
        right, left = stack.pop(), stack.pop()
        stack.append(_apply(word, left, right))
    else:
        raise _RefusedError
