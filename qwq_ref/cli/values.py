"""Types of option values, for argparse: each converts the text of an option, or refuses it in a few words.

The command line adds the option's name: `qwq: threads: must be at least 1, got 0`, with exit status 2.
"""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", re.IGNORECASE)


def integer(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """Return the type of whole numbers from `least` to `most`."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
            raise ArgumentTypeError(f"must be an integer, got {_shown(text)}")
        return _within(int(text), least, most)

    return convert


def number(least: float | None = None, most: float | None = None) -> Callable[[str], float]:
    """Return the type of finite numbers from `least` to `most`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ArgumentTypeError(f"must be a number, got {_shown(text)}")
        return _within(value, least, most)

    return convert


count = integer(1)
threads = integer(1, 1024)  # core.MOST_THREADS, which takes an import of NumPy
fraction = number(0, 1)
seed = integer(0, (1 << 64) - 1)


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
            raise ArgumentTypeError(f"must be one of {', '.join(known)}, got {_shown(text)}")
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
