"""Types of option values, for argparse: each converts the text of an option, or refuses it in a few words.

The command line adds the option as it was typed: `qwq: --threads: must be at least 1, got 0`, with exit status 2.
"""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from ..errors import did_you_mean

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_DIGITS = 20  # of the largest integer, more than those of a seed
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", re.IGNORECASE)


def integer(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """Return the type of whole numbers from `least` to `most`."""

    def convert(text: str) -> int:
        match = re.fullmatch(r"([+-]?)0*([0-9]+)", text)
        if match is None:
            raise ArgumentTypeError(f"must be an integer, got {_shown(text)}")
        if len(match[2]) > _DIGITS:  # Python refuses to read thousands of digits
            low, far = match[1] == "-", 10**_DIGITS - 1
            limit = (-far if least is None else least) if low else (far if most is None else most)
            raise ArgumentTypeError(f"must be at {'least' if low else 'most'} {limit}, got {_shown(text)}")
        return _within(int(text), least, most)

    return convert


def number(least: float | None = None, most: float | None = None) -> Callable[[str], float]:
    """Return the type of finite numbers from `least` to `most`."""

    def convert(text: str) -> float:
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not math.isfinite(value):
            raise ArgumentTypeError(f"must be a number, got {_shown(text)}")
        return _within(value, least, most)

    return convert


count = integer(1)
threads = integer(1, 1024)  # core.MOST_THREADS, which takes an import of NumPy
fraction = number(0, 1)
seed = integer(0, (1 << 64) - 1)


def tokens(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return the type of numbers of tokens such as 8192 or 8K, which is 8 x 1024."""

    def convert(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,12})([KM])", text, re.IGNORECASE)
        value = integer()(match[1] if match else text) << ({"K": 10, "M": 20}[match[2].upper()] if match else 0)
        return _within(value, least, most)

    return convert


context_size = tokens(1)


def unless(none: str, convert: Callable[[str], Value]) -> Callable[[str], Value | None]:
    """Return the type of values of which one text stands for no value, as if the option were not given."""
    return lambda text: None if text == none else convert(text)


def only(allowed: Collection[str], why: str) -> Callable[[str], str]:
    """Return the type of an option of other programs that can have one meaning here."""

    def convert(text: str) -> str:
        if text not in allowed:
            raise ArgumentTypeError(f"must be {' or '.join(allowed)}, got {_shown(text)}: {why}")
        return text

    return convert


def size(text: str) -> int:
    """Return the bytes of a size such as 800M or 8G, in powers of 1024."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ArgumentTypeError(f"must be a size such as 800M or 8G, got {_shown(text)}")
    return int(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1 if match[2] else 0))


def many(one: Callable[[str], Value]) -> Callable[[str], list[Value]]:
    """Return the type of several values with commas between them."""
    return lambda text: [one(part.strip()) for part in text.split(",")]


def one_of(names: Iterable[str]) -> dict[str, Any]:
    """Return the type and the metavar of an option that takes one of these names."""
    known = list(names)
    return {"type": _name(known), "metavar": "{" + ",".join(known) + "}"}


def some_of(names: Iterable[str]) -> dict[str, Any]:
    """Return the type and the metavar of an option that takes some of these names, with commas between them."""
    return {"type": many(_name(list(names))), "metavar": "NAME,..."}


def _name(known: list[str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in known:
            near = did_you_mean(text, known)
            raise ArgumentTypeError(f"must be one of {', '.join(known)}, got {_shown(text)}{near}")
        return text

    return convert


def _within(value: Number, least: float | None, most: float | None) -> Number:
    if least is not None and value < least:
        raise ArgumentTypeError(f"must be at least {least}, got {value}")
    if most is not None and value > most:
        raise ArgumentTypeError(f"must be at most {most}, got {value}")
    return value


def _shown(text: str) -> str:
    return text[:60] or "nothing"
